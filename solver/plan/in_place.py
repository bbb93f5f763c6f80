"""A plan as it runs in the cache of another, which has more rows than it asks for: nothing new need be allocated, and
the programs that work on the cache are those that there are.

What is predicted and proven stays that of the plan, and so do the rows that are held at once: their band ends at those
it asked for. Calls are rounded up to the rungs of the larger cache, which is what a phase's own prediction counts.
"""

from __future__ import annotations

import dataclasses

from solver.plan.micro_batches import decode_parts
from solver.plan.plan import Plan, make_buckets


def in_place_of(before: Plan, plan: Plan) -> Plan:
    """`plan` with the rows of `before`, which is in force on the same stages; `plan` itself where these are fewer or of
    another length, or where batches come in parts.
    """
    rows = before.schedule.max_rows
    parts = {decode_parts(each.schedule) for each in (before, plan)}
    if rows <= plan.schedule.max_rows or before.cache_tokens != plan.cache_tokens or parts != {1}:
        return plan
    schedule = dataclasses.replace(plan.schedule, max_rows=rows, micro_batch=rows)
    buckets = make_buckets(schedule, plan.cache_tokens, plan.max_prompt_tokens)
    return dataclasses.replace(plan, schedule=schedule, buckets=buckets, memory=before.memory)
