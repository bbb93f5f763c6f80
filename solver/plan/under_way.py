"""How much may be under way between encode devices and decode devices: simulation, planner and runner count alike.

Encode devices run ahead of decode devices by as many batches as there are buffers, besides those that their stages work
on. Decode devices take in what has arrived before each iteration.
"""

from __future__ import annotations

from collections.abc import Sequence

from solver.plan.schedule import StageSpec

# Policies of the Runner whose encode devices and decode devices are apart.
APART_POLICIES: tuple[str, ...] = ("waa-c", "waa-m", "waa")
# Encoded batches that wait to be let in: a double buffer.
BUFFERS = 2


def most_batches(encode_stages: int) -> int:
    """Batches that are being encoded or wait, at most."""
    return BUFFERS + encode_stages


def buffered_tokens(encode_batch: int, longest_prompt: int) -> int:
    """Positions of keys and values that the buffers hold on every device of a stage."""
    return BUFFERS * encode_batch * longest_prompt


def sides(stages: Sequence[StageSpec]) -> tuple[tuple[StageSpec, ...], tuple[StageSpec, ...]]:
    """Stages that encode and stages that decode, in the plan's order. Raises ValueError where one does both."""
    encode = tuple(stage for stage in stages if stage.role == "encode")
    decode = tuple(stage for stage in stages if stage.role == "decode")
    if not encode or not decode or len(encode) + len(decode) < len(stages):
        raise ValueError("stages: a policy that works apart needs stages of role encode and of role decode, no others")
    return encode, decode
