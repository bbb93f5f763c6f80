"""The table of `tests.benchmarks.gains`: a row a scenario, and how often the goal was met."""

from __future__ import annotations

import statistics

from solver.facts.stolen import Stolen
from solver.plan.schedule import Policy
from tests.benchmarks.provenance import origin

BASELINES: tuple[Policy, ...] = ("static", "iteration", "chunked")
GOAL = 0.9


def report(results: dict[str, object]) -> str:
    """The results as Markdown."""
    rows = results["rows"]
    assert isinstance(rows, list)
    lines = [
        "# The gain, measured on the engine",
        "",
        origin(results),
        "",
        "Requests per second, measured (simulated / measured - 1). Share: measured gain over the best baseline, of the "
        f"simulated gain; goal {GOAL:.0%}. Ceiling: E[longest of B] / E[S] at the static plan's batch. Noisy: runs "
        "from which others took more than 2% of the machine.",
        "",
        "| model, task | bound s | RRA | static | iteration | chunked | gain over the best | simulated | share "
        "| over static | ceiling | p99 s | kept | noisy |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    lines += [line_of(row) for row in rows]
    shares = [row["share"] for row in rows if row.get("share") is not None]
    kept = [row["kept"] for row in rows if row.get("kept") is not None]
    errors = [row["policies"]["rra"]["error"] for row in rows if "policies" in row]
    if errors:
        rps = statistics.median(abs(error["throughput_rps"]) for error in errors)
        p99 = statistics.median(abs(error["p99_s"]) for error in errors)
        lines += [
            "",
            f"Share of the simulated gain: median {statistics.median(shares):.0%}, at least {GOAL:.0%} in "
            f"{sum(share >= GOAL for share in shares)} of {len(shares)}. Bound kept in {sum(kept)} of {len(kept)}. "
            f"RRA, simulated beside measured: median error {rps:.1%} of throughput, {p99:.1%} of p99 latency. "
            "Relative to the best baseline, which ran in the same minutes, so that what others took of the machine "
            f"falls out: {_beside_rivals(rows, 'throughput_rps'):.1%} and {_beside_rivals(rows, 'p99_s'):.1%}.",
        ]
    return "\n".join(lines) + "\n"


def _beside_rivals(rows: list[dict], name: str) -> float:
    """Median of |simulated / measured of RRA over that of the best baseline - 1|."""
    found = []
    for row in rows:
        if row.get("best_baseline"):
            own, rival = row["policies"]["rra"], row["policies"][row["best_baseline"]]
            ratios = [one["simulated"][name] / one["measured"][name] for one in (own, rival)]
            found.append(abs(ratios[0] / ratios[1] - 1))
    return statistics.median(found)


def line_of(row: dict) -> str:
    """A scenario as a row of the table."""
    name = f"{row['model']}, {row['task']}"
    bound = "none" if row["bound_s"] is None else f"{row['bound_s']:.3g} ({row['bound']})"
    if "refused" in row:
        return f"| {name} | {bound} | {row['refused']} |" + " - |" * 11
    cells = []
    for policy in ("rra", *BASELINES):
        one = row["policies"].get(policy)
        cells.append(
            "none"
            if one is None
            else f"{one['measured']['throughput_rps']:.4g} ({one['error']['throughput_rps']:+.1%})"
        )
    own, static = row["policies"]["rra"]["measured"], row["policies"].get("static")
    over = "-" if static is None else f"{own['throughput_rps'] / static['measured']['throughput_rps']:.2f}x"
    gains = [f"{row[name]:.2f}x" if row[name] else "-" for name in ("gain", "simulated_gain")]
    share = f"{row['share']:.0%}" if row["share"] else "-"
    ceiling = f"{row['ceiling_over_static']:.2f}x" if row["ceiling_over_static"] else "-"
    kept = "-" if row["kept"] is None else "yes" if row["kept"] else "no"
    best = f" ({row['best_baseline']})" if row["best_baseline"] else ""
    return (
        f"| {name} | {bound} | {' | '.join(cells)} | {gains[0]}{best} | {gains[1]} | {share} | {over} | {ceiling} "
        f"| {own['p99_s']:.3g} | {kept} | {_noisy(row)} |"
    )


def _noisy(row: dict) -> str:
    """Runs from which others took too much of the machine, of all; a profile like that is told, too."""
    runs = row["stolen"]["runs"]
    found = f"{sum(share > Stolen.TOLERANCE for share in runs)} of {len(runs)}"
    return f"{found}, profile" if row["stolen"]["profile"] > Stolen.TOLERANCE else found
