"""A run as whoever looks on sees it: questions about a Runner, answered with plain JSON values.

It lives where the Runner lives; questions come by name, so that a front end can ask from another process.
"""

from __future__ import annotations

import dataclasses
import json
import os
import threading
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from exegpt_jax.runner.loop import Runner
from serving.beside import beside
from serving.telemetry.capture import Capture
from serving.telemetry.histogram import Histogram
from serving.telemetry.phases import PARTS, PhaseLog
from serving.telemetry.stacks import stacks
from solver.plan.plan import Plan
from solver.plan.schedule import Schedule

Ask = Callable[[str, Mapping[str, object]], Awaitable[Any]]
"""A question to a run, wherever it is; raises ValueError with one line where it cannot be answered."""

_LAST_DECISIONS = 20
_MOST_TRACE_S = 3600.0


class RunView:
    """Answers questions about one Runner; from any thread, one at a time.

    Args:
      runner: that runs.
      cache_bytes: of a plan: allocated on its fullest device.
      capture: of what devices do; None: no directory was given for it.
    """

    def __init__(self, runner: Runner, cache_bytes: Callable[[Plan], int], capture: Capture | None = None) -> None:
        self._runner, self._cache_bytes, self._capture = runner, cache_bytes, capture
        self._phases = PhaseLog(runner.timeline, time.monotonic())
        self._lock = threading.Lock()
        self._questions: dict[str, Callable[..., object]] = {
            "figures": self.figures,
            "plan": self.plan,
            "stats": self.stats,
            "state": self.state,
            "timeline": self.timeline,
            "phases": self.phases,
            "replan": self.replan,
            "profile_start": self.profile_start,
            "profile_stop": self.profile_stop,
        }

    def answer(self, about: str, arguments: Mapping[str, object]) -> object:
        """Raises ValueError with one line where there is no such question, or it cannot be answered."""
        if about not in self._questions:
            raise ValueError(f"about: {about!r} is no question; ask one of {', '.join(self._questions)}")
        with self._lock:
            return self._questions[about](**arguments)

    def figures(self) -> dict[str, object]:
        """What metrics are made of."""
        runner, phases, now_s = self._runner, self._phases, time.monotonic()
        phases.read(now_s)
        stats, plan = runner.stats(), runner.plan
        return {
            "pid": os.getpid(),
            "stats": dataclasses.asdict(stats),
            "kv_bytes": {"live": stats.live_bytes, "allocated": self._cache_bytes(plan)},
            "bound": bound_of(plan),
            "schedule": _labels(plan, runner.schedule),
            "measured_s": {part: counted(phases.measured_s[part]) for part in PARTS},
            "predicted_s": {part: counted(phases.predicted_s[part]) for part in PARTS},
            "rows": {part: counted(rows) for part, rows in phases.rows.items()},
            "error_ratio": phases.error_ratios(),
            "busy_ratio": {str(stage): share for stage, share in phases.busy_ratios(now_s).items()},
            "compilations": {"serving": stats.compilations, "background": self._compiled_behind()},
        }

    def plan(self) -> dict[str, object]:
        """The plan in force, as its file has it, and the schedule, which may be a neighbour of the plan's."""
        runner = self._runner
        plan, schedule = runner.plan, runner.schedule
        return {"digest": plan.digest, "plan": plan.to_json(), "schedule": _plain(dataclasses.asdict(schedule))}

    def stats(self) -> dict[str, object]:
        """Counts, predicted beside measured, and the last decisions of whoever follows the traffic."""
        runner, follower = self._runner, self._runner.follower
        records = [] if follower is None else list(follower.records)[-_LAST_DECISIONS:]
        return {
            "runner": dataclasses.asdict(runner.stats()),
            "beside": {"requests": runner.figures.measured().requests, **beside(runner.plan, runner).fields()},
            "decisions": [json.loads(record.line()) for record in records],
        }

    def state(self) -> dict[str, object]:
        """Requests on the way, without what they say, and where every thread stands."""
        runner, now_s = self._runner, time.monotonic()
        rows = [
            {
                "id": row.request.id,
                "prompt_tokens": len(row.request.prompt_ids),
                "encoded_tokens": row.encoded,
                "generated_tokens": row.generated,
                "max_tokens": row.request.sampling.max_tokens,
                "slot": row.slot,
                "age_s": round(now_s - row.arrival_s, 3),
            }
            for row in runner.rows()
        ]
        return {"plan": runner.plan.digest, "runner": dataclasses.asdict(runner.stats()), "rows": rows} | stacks()

    def timeline(self, seconds: float) -> dict[str, object]:
        """What the last seconds' phases did, as Chrome trace JSON."""
        if not 0 < seconds <= _MOST_TRACE_S:
            raise ValueError(f"seconds: {seconds} is not in (0, {_MOST_TRACE_S:g}]")
        return {"trace": self._runner.timeline.to_chrome_trace(time.monotonic() - seconds)}

    def phases(self, count: int) -> list[dict[str, object]]:
        """Timeline entries of so many phases from the middle of the run."""
        entries = list(self._runner.timeline)
        numbers = sorted({entry.phase for entry in entries})
        shown = set(numbers[max(0, (len(numbers) - count) // 2) :][:count])
        return [dataclasses.asdict(entry) for entry in entries if entry.phase in shown]

    def replan(self, latency_bound_s: float | None = None) -> dict[str, object]:
        """Asks for a plan, under another bound on latency if one is given."""
        if latency_bound_s is not None and not 0 < latency_bound_s < float("inf"):
            raise ValueError(f"latency_bound_s: {latency_bound_s} is not a number above 0")
        follower = self._runner.follower
        if follower is None:
            raise ValueError("replan: off, so the plan stands; start the server with --replan=auto")
        follower.want_plan(latency_bound_s)
        return {}

    def profile_start(self, most_s: float | None = None) -> dict[str, object]:
        return {"name": self._captures().start(most_s)}

    def profile_stop(self) -> dict[str, object]:
        return {"name": self._captures().stop()}

    def _captures(self) -> Capture:
        if self._capture is None:
            raise ValueError("profile_dir: not given, so nothing is captured; start the server with --profile_dir=DIR")
        return self._capture

    def _compiled_behind(self) -> int:
        follower = self._runner.follower
        records = () if follower is None else tuple(follower.records)
        return sum(int(record.numbers.get("compiled") or 0) for record in records if record.event == "swap")


def counted(histogram: Histogram) -> dict[str, object]:
    """A histogram as plain values: (upper bound, values up to it), the last bound None for infinity."""
    buckets = [(None if bound == float("inf") else bound, count) for bound, count in histogram.cumulative()]
    return {"buckets": buckets, "sum": histogram.sum}


def bound_of(plan: Plan) -> dict[str, Any] | None:
    """As `serving.telemetry.tally.LatencyBound` takes it."""
    if plan.bounds is None or plan.bounds.latency_s is None:
        return None
    return {"latency_s": plan.bounds.latency_s, "clock": plan.bounds.bound_from}


def _labels(plan: Plan, schedule: Schedule) -> dict[str, str]:
    shown = (
        *("policy", "encode_batch", "decode_iterations", "decode_batch", "micro_batch"),
        *("max_rows", "most_rows", "token_budget"),
    )
    labels = {name: str(getattr(schedule, name)) for name in shown}
    stages = [f"{stage.role}:{stage.layers[0]}-{stage.layers[1]}x{stage.tensor}" for stage in schedule.stages]
    return {"plan": plan.digest[:12], **labels, "stages": " ".join(stages)}


def _plain(value: object) -> object:
    """As JSON reads it back."""
    return json.loads(json.dumps(value))
