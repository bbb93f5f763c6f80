"""Bytes that every placement of a family holds at least, all devices of a copy taken as one.

Weights, cache and payloads of all stages add up to those of one stage with every layer. Token counts and logits are
held where tokens are sampled, and what a block holds while it runs in each stage; each counts at the degree that stores
least.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Sequence

import numpy as np

from solver.facts.workload import Floats, Ints
from solver.plan.memory import (
    LEAST_VIEW_SHARE,
    activation_bytes,
    cache_row_bytes,
    counts_bytes,
    payload_bytes,
    sampling_bytes,
    view_bytes,
    weight_bytes,
)
from solver.plan.plan import LARGEST_CHUNK_TOKENS, make_buckets
from solver.plan.schedule import Schedule, StageSpec
from solver.search.family import Family
from solver.search.proof.floors import MemoryFloor
from solver.search.setting import Setting
from solver.simulate.costs import UnitCosts


@dataclasses.dataclass(frozen=True, eq=False)
class FamilyMemory:
    """What the devices of a copy hold together, counted as `solver.plan.memory` does.

    Attributes:
      floor: for boxes of candidates: the copy that decode takes out of the cache is as small as such copies get.
      view_bytes: float64 [ways]: of each row of that copy, beyond what the floor counts for it.
      setting: whose ladders of rows say how large it is.
    """

    floor: MemoryFloor
    view_bytes: Floats
    setting: Setting

    def share(self, rows: Ints, batch: Ints) -> Floats:
        """float64 [P]: of the capacity, of candidates that allocate so many rows each."""
        alone, where = np.unique(rows, return_inverse=True)
        view = np.array([_view_rows(self.setting, int(count)) for count in alone])[where.ravel()]
        beyond = np.maximum(0.0, view - LEAST_VIEW_SHARE * (rows - 1.0))
        floor = self.floor
        held = floor.fixed_bytes + floor.row_bytes * rows[:, None] + self.view_bytes * beyond[:, None]
        if floor.batch_bytes is not None:
            held = held + floor.batch_bytes * batch[:, None]
        return np.asarray((held / floor.capacity_bytes).max(axis=1))


def family_memory(setting: Setting, capacity_bytes: float, units: Sequence[UnitCosts], family: Family) -> FamilyMemory:
    """Of every placement of a family.

    A payload is that of an encode call or that of one row; temporaries are those of decode or of encode. The larger
    counts each time, so there are four ways to count, all of which must fit.

    Args:
      capacity_bytes: of all devices.
      units: of every degree that occurs.
    """
    model = setting.memory
    spec, tokens = model.spec, model.cache_tokens
    prompt = min(model.max_prompt_tokens, LARGEST_CHUNK_TOKENS)
    slots = setting.conditions.cache_layout == "slots"

    def least(part: Callable[[StageSpec], int]) -> float:
        """Over the degrees, of all devices of a stage with every layer."""
        stages = [StageSpec("both", (0, spec.num_layers), tuple(range(unit.tensor)), unit.tensor) for unit in units]
        return float(min(stage.tensor * part(stage) for stage in stages))

    cache = slots * least(lambda stage: cache_row_bytes(spec, stage, tokens, model.cache_dtype))
    weights = least(lambda stage: weight_bytes(spec, stage, model.dtype))
    sampled = least(lambda stage: sampling_bytes(spec, stage, 1))
    row = least(lambda stage: counts_bytes(spec, stage, 1)) + cache
    # Calls of a padded profile are as large as the engine makes them, whatever the micro-batch.
    share = 0.0 if setting.padding is not None else 1 / family.encode_micro_batches
    payloads = [
        (least(lambda stage: payload_bytes(spec, stage, 1, tokens, model.cache_dtype)), 0.0),
        (0.0, share * least(lambda stage: payload_bytes(spec, stage, 1, prompt, model.cache_dtype))),
    ]
    decode = least(lambda stage: activation_bytes(spec, stage, 1, 1, tokens, model.dtype)) * family.stages[0]
    encode = least(lambda stage: activation_bytes(spec, stage, 1, prompt, prompt, model.dtype)) * family.stages[0]
    view = LEAST_VIEW_SHARE * cache
    temporaries = [(-view, view + decode + sampled, 0.0), (0.0, 0.0, share * (encode + sampled))]
    ways = list(itertools.product(payloads, temporaries))
    token = least(lambda stage: cache_row_bytes(spec, stage, 1, model.cache_dtype)) * (not slots)
    floor = MemoryFloor(
        fixed_bytes=np.array([weights + payload[0] + temporary[0] for payload, temporary in ways]),
        row_bytes=np.array([row + temporary[1] for _, temporary in ways]),
        token_bytes=np.full(len(ways), token),
        capacity_bytes=np.full(len(ways), capacity_bytes),
        batch_bytes=np.array([payload[1] + temporary[2] for payload, temporary in ways]),
    )
    return FamilyMemory(floor, np.array([cache * (temporary is temporaries[0]) for _, temporary in ways]), setting)


def _view_rows(setting: Setting, rows: int) -> float:
    """Rows of the largest copy that decode takes out of a cache of so many."""
    model = setting.memory
    stage = StageSpec("both", (0, model.spec.num_layers), (0,), 1)
    schedule = Schedule("rra", 1, 1, 1, rows, (stage,), 1, 1)
    buckets = make_buckets(schedule, model.cache_tokens, model.max_prompt_tokens)
    whole = cache_row_bytes(model.spec, stage, model.cache_tokens, model.cache_dtype)
    return view_bytes(model.spec, stage, buckets, model.cache_dtype) / whole
