"""Whether a run did what its plan says, read off its Chrome trace."""

from __future__ import annotations

import json
from pathlib import Path

from solver.plan.plan import Plan


def spans(trace: Path) -> list[dict]:
    return [event for event in json.loads(trace.read_text())["traceEvents"] if event["ph"] == "X"]


def check_run_as_planned(trace: Path, plan: Plan) -> None:
    """The Timeline's phases are the plan's, and each has its prediction."""
    schedule, buckets = plan.schedule, plan.buckets
    encodes = [span["args"] for span in spans(trace) if span["cat"] == "encode"]
    decodes = [span["args"] for span in spans(trace) if span["cat"] == "decode"]
    assert max(span["iterations"] for span in decodes) == schedule.decode_iterations
    assert max(span["rows_bucket"] for span in decodes) <= schedule.max_rows
    assert {span["rows_bucket"] for span in decodes} <= set(buckets.decode_rows)
    assert {rows for span in encodes for rows, _ in span["calls"]} <= {1, *buckets.encode_rows}
    assert all(span["predicted_s"] > 0 for span in encodes + decodes)
