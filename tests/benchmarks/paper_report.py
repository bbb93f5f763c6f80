"""Table and chart of `tests.benchmarks.paper`: every scenario, the summary beside the published one, Table 6."""

from __future__ import annotations

from typing import TYPE_CHECKING

from solver.report.page import BLUE, GREEN, PURPLE, RED, Chart, to_svg
from tests.benchmarks.paper_gains import BASELINE_NAMES, PUBLISHED, gain, gains_of, gap_of, groups_of, stats
from tests.benchmarks.paper_notes import differences
from tests.benchmarks.provenance import origin

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def markdown_of(report: dict) -> str:
    rows = report["scenarios"]
    parts = [
        "# The paper, side by side",
        "Predictions of this repository's closed forms, nothing measured: throughput of the best RRA and WAA plan over "
        "static batching on FasterTransformer's placement at the same bound, and over three other baselines. Bounds: "
        "percentiles of that static batching's latency over its batches in steps of 4. Paged cache, finished rows "
        f"leave at once, margin 0, at most {report['time_limit_s']:g} s a search, gap {report['gap']:.0%} asked; a "
        "plan found at a tighter bound counts at a looser one. Latency is that of the answer of 99th percentile "
        "length.",
        f"{origin(report, 'ortools', 'load')}; {report['seconds']:.0f} s in all.",
        *(("## Summary", _summary(rows), _by_bound(rows)) if rows else ()),
        "## Table 6: OPT-13B, task S, 4 A40",
        _table6(report["table6"]),
        "## What differs from the paper, and why",
        "\n".join(f"- {line}" for line in differences(report)),
        "## Scenarios",
        _scenarios(rows),
    ]
    if report["skipped"]:
        parts += ["## Left out", "\n".join(f"- {line}" for line in report["skipped"])]
    return "\n\n".join(parts) + "\n"


def _summary(rows: list[dict]) -> str:
    lines = [
        "Gain of the better of RRA and WAA: mean (geometric mean), range, over scenarios whose baseline has a plan.",
        "",
        "| models | scenarios | static, published | static, here | dsi | iteration | chunked |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, some in groups_of(rows).items():
        cells = [stats(gains_of(some, baseline)) for baseline in BASELINE_NAMES]
        lines.append(f"| {name} | {len(some)} | {PUBLISHED[name]} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _by_bound(rows: list[dict]) -> str:
    lines = ["| bound | small and middle, over static | large, over static | published |", "|---|---|---|---|"]
    groups = groups_of(rows)
    for bound in dict.fromkeys(row["bound"] for row in rows):
        cells = [stats(gains_of([r for r in some if r["bound"] == bound], "ft")) for some in groups.values()]
        lines.append(f"| {bound} | {cells[0]} | {cells[1]} | {'2.2x on large' if bound == 'inf' else '-'} |")
    return "\n".join(lines)


def _table6(rows: list[dict]) -> str:
    lines = [
        "Published controls as printed; the same controls evaluated here; what the searches here find at that bound.",
        "",
        "| bound s | published policy | latency s, rps | the same here: latency s, rps (error) | encode s, iteration s "
        "here | best RRA here | best WAA here | static here |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        there, here, found = row["published"], row["same_policy_here"], row["found_here"]
        controls = f"B_E={there['batch']}" + (f" N_D={there['iterations']}" if there["iterations"] else "")
        off_s, off_rps = here["latency_s"] / there["latency_s"] - 1, here["rps"] / there["rps"] - 1
        static = found["ft"]
        cells = [
            "inf" if row["bound_s"] is None else f"{row['bound_s']:g}",
            f"{there['policy'].upper()} {controls} TP{there['tensor']}",
            f"{there['latency_s']}, {there['rps']}",
            f"{here['latency_s']:.2f} ({off_s:+.0%}), {here['rps']:.2f} ({off_rps:+.0%})",
            f"{here['encode_s']:.3f}, {here['iteration_s']:.4f}",
            _plan(found["rra"]),
            _plan(found["waa"]),
            f"{static['rps']:.2f} at {static['latency_s']:.2f} s, batch {static['batch']}" if static else "none",
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _plan(found: dict) -> str:
    if not found["rps"]:
        return "none found"
    copies = f"{found['copies']} x " if found["copies"] > 1 else ""
    stages = short_stages(found["stages"])
    return (
        f"{found['rps']:.2f} at {found['latency_s']:.2f} s: B_E={found['batch']} N_D={found['iterations']}, "
        f"{copies}TP {stages}"
    )


def short_stages(stages: str) -> str:
    """Runs of equal stages in one."""
    found: list[list] = []
    for stage in stages.split():
        if found and found[-1][0] == stage:
            found[-1][1] += 1
        else:
            found.append([stage, 1])
    return " ".join(f"{stage}" if count == 1 else f"{stage}*{count}" for stage, count in found)


def _scenarios(rows: list[dict]) -> str:
    lines = [
        "`gap`: share of the search's own bound that was left when it ended; `open`: time ended it without a bound.",
        "",
        "| scenario | bound | s | RRA rps (gap) | WAA rps (gap) | static | dsi | iteration | chunked | gain over "
        "static | "
        "over chunked |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        over = [gain(row, baseline) for baseline in ("ft", "chunked")]
        cells = [
            f"{row['model']}, {row['devices']} {row['cluster'].removeprefix('paper-').split('-')[0].upper()}, "
            f"{row['task'].removeprefix('paper-').upper()}",
            row["bound"],
            "-" if row["bound_s"] is None else f"{row['bound_s']:.1f}",
            *(_searched(row[policy]) for policy in ("rra", "waa")),
            *(f"{row[b]['rps']:.2f}" if row.get(b) and row[b]["rps"] else "-" for b in BASELINE_NAMES),
            *("-" if value is None else f"{value:.2f}x" for value in over),
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _searched(found: dict) -> str:
    gap = gap_of(found)
    words = "open" if gap is None else f"{gap:.1%}"
    return f"{found['rps']:.2f} ({words})" if found["rps"] else "none (proven)" if gap == 0 else f"none ({words})"


def charts_of(report: dict) -> str:
    """SVG: the gain over each baseline, one mark per scenario, by model."""
    rows = report["scenarios"]
    systems = list(dict.fromkeys((row["model"], row["cluster"], row["devices"]) for row in rows))
    marks = (("ft", "o", BLUE), ("iteration", "D", PURPLE), ("chunked", "p", RED), ("dsi", "^", GREEN))

    def draw(axes: Axes) -> None:
        for offset, (baseline, marker, colour) in enumerate(marks):
            points = [
                (found, index + 0.18 * (offset - 1.5))
                for index, system in enumerate(systems)
                for row in rows
                if (row["model"], row["cluster"], row["devices"]) == system and (found := gain(row, baseline))
            ]
            if points:
                x, y = zip(*points, strict=True)
                axes.plot(x, y, marker, color=colour, ms=5, alpha=0.7, label=f"over {BASELINE_NAMES[baseline]}")
        axes.axvline(1, color="black", lw=1)
        axes.set_xscale("log")
        ticks = (0.25, 0.5, 1, 2, 4, 8)
        axes.set_xticks(ticks, [f"{tick:g}x" for tick in ticks])
        axes.minorticks_off()
        axes.set_yticks(
            range(len(systems)),
            [f"{m}\n{n} {c.removeprefix('paper-').split('-')[0].upper()}" for m, c, n in systems],
        )
        axes.invert_yaxis()
        axes.set_xlabel("throughput of the better of RRA and WAA over the baseline at the same latency bound")
        axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.12), ncols=4)

    return to_svg([Chart("Gain by scenario, predicted", draw, 5.5)])
