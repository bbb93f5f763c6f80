"""What one iteration of a micro-batch costs the host on each stage: a dispatch of its program, a hand-over to the next.

A pipeline of several stages dispatches every iteration of every micro-batch on every stage from one thread, so this is
what a stage's work must outlast. It is timed on the real programs, one iteration at a time, with nothing under way; the
hand-over where there are devices for a second stage.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import jax
from jax import Array

from exegpt_jax.engine.pipeline.pipeline import Pipeline
from exegpt_jax.engine.transfer.links import Link
from exegpt_jax.profiler.grid import Limits
from exegpt_jax.sharding.mesh import make_mesh
from exegpt_jax.sharding.stage import Stage
from solver.plan.buckets import Buckets
from solver.plan.plan import Plan
from solver.plan.schedule import Schedule

_PASSES = 30
_WARM_PASSES = 5
_MOST_ROWS = 8
_PARTS = 2


def stage_dispatch_s(stage: Stage, limits: Limits, cache_dtype: str) -> float:
    """Median host seconds per stage and micro-batch; `stage` has the whole model, so more arguments than any part."""
    rows = max(1, min(_MOST_ROWS, limits.max_rows))
    schedule = Schedule("rra", 1, 1, _PARTS * rows, _PARTS * rows, (stage.stage,), rows, 1)
    length = min(64, limits.cache_tokens)
    buckets = Buckets((1,), (1,), (_PARTS * rows,), (length,))
    plan = Plan("profile", stage.dtype, cache_dtype, length, 1, schedule, buckets)
    pipeline = Pipeline([stage], plan, time.perf_counter)
    (engine,) = pipeline.engines
    engine.warm_up(kinds=("alloc", "begin", "iterate"))
    views, feed = pipeline.begin([engine.initial_state()], rows, length)

    def iterate() -> Array:
        nonlocal views, feed
        done = pipeline.iterate(views, feed)
        views, feed = done.views, done.feed
        return done.block.tokens

    spent_s = _median_s(iterate)
    others = [device for device in jax.local_devices() if device not in set(stage.mesh.devices.flat)]
    if len(others) >= stage.stage.tensor:
        link = Link(stage.mesh, make_mesh(others[: stage.stage.tensor]))
        spent_s += _median_s(lambda: link.feed(feed).x)
    return spent_s


def _median_s(dispatch: Callable[[], Array]) -> float:
    """Of the call alone; what it began is waited for in between."""
    times = []
    for _ in range(_PASSES):
        began_s = time.perf_counter()
        result = dispatch()
        times.append(time.perf_counter() - began_s)
        jax.block_until_ready(result)
    return statistics.median(times[_WARM_PASSES:])
