"""The figures of a load for people."""

from __future__ import annotations

import math

from rich.table import Table

from serving.load.figures import MOST_LAG_S, Figures, Spread, limits_of
from solver.plan.bounds import Bounds

_FROM = {"encode": "from the start of encode", "arrival": "from arrival"}


def table_of(figures: Figures, title: str) -> Table:
    """One row a figure, in milliseconds; between messages: with the tokens that each brings."""
    table = Table(title=title, title_justify="left")
    table.add_column("milliseconds", no_wrap=True)
    for heading in ("mean", "p50", "p90", "p95", "p99", "max"):
        table.add_column(heading, justify="right")
    rows = (
        ("first token, from arrival", figures.ttft_with_wait_s),
        ("first token, from encode", figures.ttft_s),
        ("per output token", figures.tpot_s),
        (f"between messages ({figures.tokens_per_message:.3g})", figures.inter_message_s),
        ("latency, from arrival", figures.latency_with_wait_s),
        ("latency, from encode", figures.latency_s),
    )
    for name, found in rows:
        table.add_row(name, *(_milliseconds(v) for v in (found.mean, *_percentiles(found), found.max)))
    return table


def lines_of(figures: Figures, bounds: Bounds) -> list[str]:
    """What stands below the table."""
    found = [
        f"{figures.answered} of {figures.requests} requests answered in {figures.seconds:.2f} s: "
        f"{figures.requests_per_s:.4g} requests/s ({figures.sent_per_s:.4g}/s sent), "
        f"{figures.tokens_per_s:.4g} tokens/s"
    ]
    found += [f"{count} {code}: {figures.examples[code]}" for code, count in figures.errors.items()]
    if figures.unfinished:
        found.append(f"{figures.unfinished} requests were not sent or not finished when the load broke off")
    if (good := figures.goodput) is not None:
        found.append(
            f"goodput: {good.requests_per_s:.4g} requests/s, {good.share:.2%} of all keep {', '.join(_named(bounds))}"
        )
    return [*found, *_client_lines(figures)]


def _named(bounds: Bounds) -> list[str]:
    since = _FROM[bounds.bound_from]
    names = {
        "latency": f"latency {since}",
        "ttft": f"time to first token {since}",
        "tpot": "time per output token",
    }
    return [f"{names[name]} <= {limit:g} s" for name, limit in limits_of(bounds)]


def _client_lines(figures: Figures) -> list[str]:
    client = figures.client
    lags = (("sending", client.send_lag_s), ("loop", client.loop_lag_s))
    lag = ", ".join(f"{name} lag p99 {found.p99 * 1e3:.2f} ms" for name, found in lags if found.count)
    shares = ", ".join("?" if math.isnan(share) else f"{share:.0%}" for share in client.cpu_shares)
    told = f"client: {lag or 'no lag measured'}; CPU of each process {shares}"
    if client.warning is None:
        return [f"{told}; it was in time (within {MOST_LAG_S * 1e3:.0f} ms), so the times are the server's"]
    return [
        told,
        f"warning: {client.warning}; use more --processes (now {len(client.cpu_shares)}), --one_call, or more machines",
    ]


def _percentiles(found: Spread) -> tuple[float, ...]:
    return (found.p50, found.p90, found.p95, found.p99)


def _milliseconds(seconds: float) -> str:
    if math.isnan(seconds):
        return "-"
    return f"{seconds * 1e3:,.{2 if seconds < 0.1 else 1 if seconds < 1 else 0}f}"
