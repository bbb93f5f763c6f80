"""How much may be under way between encode devices and decode devices: simulation, planner and runner count alike.

Encode devices run ahead of decode devices by as many batches as there are buffers, besides those that their stages work
on. Decode devices take in what has arrived before each iteration.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from solver.facts.model_spec import ModelSpec
from solver.plan.memory import DeviceMemory, payload_bytes
from solver.plan.plan import Plan
from solver.plan.schedule import Schedule, StageSpec

# Policies whose encode devices and decode devices are apart.
APART_POLICIES: tuple[str, ...] = ("waa-c", "waa-m", "waa", "disaggregated")
# Encoded batches that wait to be let in: a double buffer.
BUFFERS = 2


def most_batches(encode_stages: int) -> int:
    """Batches that are being encoded or wait, at most."""
    return BUFFERS + encode_stages


def buffered_tokens(encode_batch: int, longest_prompt: int) -> int:
    """Positions of keys and values that the buffers hold on every device of a stage."""
    return BUFFERS * encode_batch * longest_prompt


def rows_to_correct(schedule: Schedule, decoding: int, under_way: int, early: int = 0) -> int:
    """What counts as live for `solver.plan.correction.corrected_batch` where sides are apart.

    The planned decode batch b is a mean here: B_E rows join every N iterations, B_E / N leave each iteration. As one
    is sent off, just when the batch before it has been encoded, decoding rows and that one are b + B_E (N - 1) / 2N on
    average, and by the time that it joins, B_E more have left. So at the plan's pace the correction finds b - B_E.

    Args:
      schedule: in force.
      decoding: rows on decode devices.
      under_way: rows that are being encoded, or were and have not been let in.
      early: batches that still have to be encoded before this one.
    """
    batch, iterations = schedule.encode_batch, schedule.decode_iterations
    joined = batch * (iterations - 1) / (2 * iterations)
    return decoding + under_way - round(joined) - (1 + early) * batch


def works_apart(schedule: Schedule) -> bool:
    """Whether encode devices and decode devices are apart."""
    return schedule.policy in APART_POLICIES


def with_buffers(table: Sequence[DeviceMemory], spec: ModelSpec, plan: Plan) -> tuple[DeviceMemory, ...]:
    """`solver.plan.memory.memory_table` of a plan, its payloads those of all buffers where sides are apart."""
    if not works_apart(plan.schedule):
        return tuple(table)
    tokens = buffered_tokens(plan.schedule.encode_batch, plan.max_prompt_tokens)
    found = []
    for memory in table:
        stage = plan.schedule.stages[memory.stage]
        held = payload_bytes(spec, stage, 1, tokens, plan.cache_dtype)
        found.append(dataclasses.replace(memory, payload_bytes=memory.payload_bytes + held))
    return tuple(found)


def sides(stages: Sequence[StageSpec]) -> tuple[tuple[StageSpec, ...], tuple[StageSpec, ...]]:
    """Stages that encode and stages that decode, in the plan's order. Raises ValueError where one does both."""
    encode = tuple(stage for stage in stages if stage.role == "encode")
    decode = tuple(stage for stage in stages if stage.role == "decode")
    if not encode or not decode or len(encode) + len(decode) < len(stages):
        raise ValueError("stages: a policy that works apart needs stages of role encode and of role decode, no others")
    return encode, decode
