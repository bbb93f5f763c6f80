"""The objectives of the policies in the terms of a placement: periods, cycles, latencies as linear forms.

Loads of RRA: one encode micro-batch, then samples of the decode phase, the last iteration's among them, then the fixed
cost of a call. Loads of WAA: the encode batch, then one decode iteration.
"""

from __future__ import annotations

from collections.abc import Sequence

from solver.search.placement.placement_problem import Form

# Factors of WAA are ratios; in these parts they are whole.
WAA_PARTS = 1000


def rra_period(iterations: Sequence[int], encodes: int = 1, phases: int = 1, name: str = "period") -> Form:
    """T_E + sum of T_D + b and the call's cost (scheduling.md, 2.2), or a latency of the same parts.

    Args:
      iterations: per decode sample, how many iterations it stands for; the last sample is the last iteration's and
        stands for itself at least once where `phases` is 1.
      encodes: how often T_E occurs: 1 in a period; k in a latency of k periods.
      phases: how often a decode phase drains (b), and is called.
      name: for people.
    """
    if iterations[-1] < phases:
        raise ValueError(f"iterations: the last sample stands for {iterations[-1]}; give at least {phases}")
    return Form(
        name=name,
        pace=(0, *iterations[:-1], iterations[-1] - phases, 0),
        drained=(encodes, *(0 for _ in iterations[:-1]), phases, 0),
        bottleneck=(0, *(0 for _ in iterations), phases),
    )


def waa_cycle(encode_batch: int, decode_rows: float, mean_decode: float) -> tuple[Form, Form]:
    """Time per encode batch on either side, in WAA_PARTS; the longer one is the cycle (scheduling.md, 2.3).

    Encode: x_E, its slowest stage. Decode: b rows finish b / E[D] requests per iteration, so a batch of B_E takes
    B_E E[D] / b iterations of T_D.
    """
    ratio = int(WAA_PARTS * encode_batch * mean_decode / decode_rows)
    return (
        Form("encode cycle", (0, 0), (0, 0), (WAA_PARTS, 0)),
        Form("decode cycle", (0, ratio), (0, 0), (0, 0)),
    )
