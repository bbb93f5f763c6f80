"""A plan as it runs in the cache of another, which has more rows than it asks for: nothing new is allocated, and the
programs that work on the cache are mostly those that there are.

What is predicted and proven stays that of the plan, and so do the rows that are held at once. Decode calls round up to
the rungs of the larger cache, and to the plan's own rows where these are far below one.
"""

from __future__ import annotations

import dataclasses

from solver.facts.model_spec import ModelSpec
from solver.plan.buckets import round_up
from solver.plan.memory import DeviceMemory, memory_table
from solver.plan.micro_batches import decode_parts
from solver.plan.plan import Plan, make_buckets
from solver.plan.prediction import StageMemory

# Of rows that a plan may hold, by a rung of the larger cache; programs for a rung of its own must be compiled.
_MOST_PADDING = 1.25


def in_place_of(spec: ModelSpec, before: Plan, plan: Plan, usable_bytes: int) -> Plan:
    """`plan` with the rows of `before`, which is in force on the same stages.

    `plan` itself where these are fewer or of another length, where batches come in parts, or where some device cannot
    hold so many rows beside the plan's own prompts.
    """
    rows = before.schedule.max_rows
    parts = {decode_parts(each.schedule) for each in (before, plan)}
    if rows <= plan.schedule.max_rows or before.cache_tokens != plan.cache_tokens or parts != {1}:
        return plan
    schedule = dataclasses.replace(plan.schedule, max_rows=rows, micro_batch=rows, held_rows=plan.schedule.most_rows)
    buckets = make_buckets(schedule, plan.cache_tokens, plan.max_prompt_tokens)
    held = plan.schedule.most_rows
    if round_up(held, buckets.decode_rows) > _MOST_PADDING * held:
        buckets = dataclasses.replace(buckets, decode_rows=tuple(sorted({*buckets.decode_rows, held})))
    table = memory_table(spec, schedule, buckets, plan.dtype, plan.cache_dtype)
    if any(device.total_bytes > usable_bytes for device in table):
        return plan
    memory = tuple(_recounted(stage, table) for stage in plan.memory)
    return dataclasses.replace(plan, schedule=schedule, buckets=buckets, memory=memory)


def _recounted(stage: StageMemory, table: tuple[DeviceMemory, ...]) -> StageMemory:
    found = next(each for each in table if each.stage == stage.stage)
    return dataclasses.replace(
        stage,
        cache_bytes=found.cache_bytes,
        payload_bytes=found.payload_bytes,
        temporary_bytes=found.temporary_bytes + found.counts_bytes,
        # What may be filled was checked by whoever runs it.
        usable_bytes=max(stage.usable_bytes, found.total_bytes),
    )
