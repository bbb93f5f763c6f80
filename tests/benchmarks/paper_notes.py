"""What differs from the paper's published figures and why, as sentences made from the data of a run."""

from __future__ import annotations

import numpy as np

from tests.benchmarks.paper_gains import PUBLISHED, best_rps, gain, gains_of, gap_of, groups_of
from tests.benchmarks.table6 import plain_bounds

# Table 7 of the paper, seconds: RRA encode phase and iteration, WAA iteration.
RRA_ENCODE_S, RRA_ITERATION_S, WAA_ITERATION_S = 1.68, 0.038, 0.041
# Gains that the paper names: model, devices, task, bound, gain, words.
NAMED = (
    ("gpt3-39b", 16, "paper-s", "10%", 5.4, "39B, task S, 9.8 s"),
    ("gpt3-175b", 32, "paper-g", "10%", 15.2, "175B, task G, tightest bound"),
    ("gpt3-175b", 16, "paper-g", "10%", 15.2, "175B, task G, tightest bound"),
)


def differences(report: dict) -> list[str]:
    """One line a figure."""
    rows = report["scenarios"]
    lines = [
        "Every number here is a prediction. The A40's attention times are an estimate (the A100's ratio to its "
        "roofline, "
        "carried over), and there is no OPT table for it: absolute throughputs and seconds on A40 are estimates. Both "
        "sides of a ratio use the same tables, so ratios suffer less.",
        *_table6(report["table6"]),
    ]
    if rows:
        lines += [*_averages(rows), *_named(rows), *_bounds(rows), *_waa(rows), *_chunked(rows), *_limits(report)]
    return [*lines, *_missing(report)]


def _table6(table: list[dict]) -> list[str]:
    errors = ", ".join(f"{r['same_policy_here']['rps'] / r['published']['rps'] - 1:+.0%}" for r in table)
    rra = next(row for row in table if row["published"]["policy"] == "rra")
    waa = next(row for row in table if row["published"]["policy"] == "waa")
    here, there = rra["same_policy_here"], rra["published"]
    period_s = there["batch"] / there["rps"]
    found = [max(row["found_here"][p]["rps"] for p in ("rra", "waa")) for row in table]
    same = [row["same_policy_here"]["rps"] for row in table]
    return [
        f"Table 6, published controls evaluated here: throughput off by {errors}. Its third row has a period of "
        f"{period_s:.2f} s, here {there['batch'] / here['rps']:.2f}. Table 7 (which does not name its row) gives "
        f"{RRA_ENCODE_S} s for an encode phase and {RRA_ITERATION_S} s for an iteration of RRA, here "
        f"{here['encode_s']:.2f} and {here['iteration_s']:.3f}; {WAA_ITERATION_S} s for an iteration of WAA, here "
        f"{waa['same_policy_here']['iteration_s']:.3f}. So decoding is met within 15%, and the encode phase is quicker "
        f"here: at {RRA_ENCODE_S} s, 52 prompts of 256 tokens run at 34% of four A40's peak.",
        "Table 6, second row: with one iteration time the first two rows cannot both be met. The latency here is "
        f"{table[0]['same_policy_here']['latency_s'] / table[0]['published']['latency_s'] - 1:+.0%} off in the first "
        f"and "
        f"{table[1]['same_policy_here']['latency_s'] / table[1]['published']['latency_s'] - 1:+.0%} in the second, "
        "although iterations take as long in both.",
        "Beyond the published plans: at the bounds of Table 6 the best plan found here has "
        + ", ".join(f"{a / b:.2f}x" for a, b in zip(found, same, strict=True))
        + " the throughput of the published controls in the same simulator. It may have copies of the model, and "
        "degrees that differ between the sides of a split.",
    ]


def _averages(rows: list[dict]) -> list[str]:
    lines = []
    for name, some in groups_of(rows).items():
        gains = gains_of(some, "ft")
        if gains:
            top = max(some, key=lambda row: gain(row, "ft") or 0.0)
            none = sum(best_rps(row) == 0 for row in some)
            lines.append(
                f"{name.capitalize()} models: {np.mean(gains):.2f}x on average over static batching, at most "
                f"{max(gains):.2f}x ({top['model']} on {top['devices']}, {top['task']}, bound {top['bound']}); "
                f"published "
                f"{PUBLISHED[name]}. In {none} of {len(some)} scenarios no plan was found; they count as 0."
            )
    return lines


def _named(rows: list[dict]) -> list[str]:
    return [
        f"The {published}x of {words}: here {gain(row, 'ft'):.2f}x on {devices} devices at {row['bound_s']:.1f} s, "
        f"where static batching reaches {row['ft']['rps']:.2f} requests/s with a batch of {row['ft']['batch']}."
        for model, devices, task, bound, published, words in NAMED
        for row in rows
        if (row["model"], row["devices"], row["task"], row["bound"]) == (model, devices, task, bound) and row["ft"]
    ]


def _bounds(rows: list[dict]) -> list[str]:
    ours = [
        f"{row['bound_s']:.1f}" for row in rows
        if (row["model"], row["task"]) == ("opt-13b", "paper-s") and row["bound_s"] is not None
    ]  # fmt: skip
    if not ours:
        return []
    first = next(row for row in rows if (row["model"], row["task"]) == ("opt-13b", "paper-s"))
    batches, seconds = first["ft_batches"], first["ft_latency_s"]
    plain_most, plain = plain_bounds(0.01)
    return [
        "Bounds: for OPT-13B and task S the paper's are 3.1, 5.9 and 11.5 s; the same percentiles of static batching "
        "here "
        f"are {', '.join(ours)} s, over batches {batches[0]} to {batches[1]} ({seconds[0]:.1f} to {seconds[1]:.1f} s). "
        "The batches end where this repository's engine has no room for more: beside weights and cache it holds a "
        "copy of "
        f"the prompts' cache and temporaries. With weights and cache alone they go to {plain_most}, and the "
        f"percentiles "
        f"are {', '.join(f'{each:.1f}' for each in plain)} s, near the published ones. So the static batching of this "
        "table ends too early, at least there, which makes its bounds tighter and its best throughput lower than "
        "FasterTransformer's would be; other scenarios were not checked for it. The paper tells neither its batches "
        "nor "
        "most of its bounds.",
    ]


def _waa(rows: list[dict]) -> list[str]:
    split = [row for row in rows if row["model"] in ("gpt3-175b", "gpt3-341b")]
    if not split:
        return []
    systems = dict.fromkeys((r["model"], r["devices"], r["cluster"].split("-")[1].upper()) for r in split)
    held = []
    for model, devices, kind in systems:
        rps = max(r["waa"]["rps"] for r in split if (r["model"], r["devices"]) == (model, devices))
        held.append(f"{model} on {devices} {kind} " + (f"up to {rps:.2f} requests/s" if rps else "none found in time"))
    return [
        "WAA is published as infeasible for 175B and 341B, which it holds twice. Found here: "
        + "; ".join(held)
        + ". Two "
        "copies of 175B take 700 GB and of 341B 1,363 GB, where 90% of 32 A40, 48 A40 and 16 A100 are 1,391, 2,087 and "
        "1,237 GB: the weights fit. What the paper reserves beside them is not published."
    ]


def _chunked(rows: list[dict]) -> list[str]:
    known = [row for row in rows if row.get("chunked") and row["chunked"]["rps"]]
    ahead = sum(row["chunked"]["rps"] > best_rps(row) for row in known)
    return [
        f"Chunked prefill is not in the paper. It is predicted above the best of RRA and WAA in {ahead} of "
        f"{len(known)} "
        "scenarios. Its iterations follow each other through the stages without a gap, while RRA as run by this "
        "repository waits for the last stage after every phase.",
    ]


def _limits(report: dict) -> list[str]:
    rows = report["scenarios"]
    opened = {p: sum(gap_of(row[p]) is None for row in rows) for p in ("rra", "waa")}
    closed = {p: sorted(gap for row in rows if (gap := gap_of(row[p])) is not None) for p in ("rra", "waa")}
    words = [
        f"{p.upper()}: no bound in time in {opened[p]} of {len(rows)}"
        + (f", else a median gap of {np.median(closed[p]):.1%}, at most {closed[p][-1]:.1%}" if closed[p] else "")
        for p in ("rra", "waa")
    ]
    return [
        f"Searches of {report['time_limit_s']:g} s: "
        + "; ".join(words)
        + ". Where time ended a search, its throughput, and "
        "so the gain, is what was found by then."
    ]


def _missing(report: dict) -> list[str]:
    return [
        "4.4x on real data (WMT, Alpaca, CNN) is not reproduced: the length data of those are not here. The traces "
        "that are "
        f"here have longer rows than the 2,048 positions of the paper's models ({len(report['refused'])} pairs of "
        f"model "
        "and trace refused): " + "; ".join(line.split("; fit")[0] for line in report["refused"][:4]) + ".",
        "T5-11B on 8 A40 is missing: no profile of it ships.",
        "These models emit the first token with the encode phase, so an answer of S tokens takes S - 1 iterations "
        "here, S in "
        "the paper: 0.3 to 0.4% of Table 6's latencies.",
    ]
