"""Bytes per device of many candidates at once, counted as `solver.plan.memory` counts one schedule.

What a candidate changes are its rows, its cached tokens and its encode micro-batch; whatever does not depend on them is
counted once per stage by the functions that the engine itself asks.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Literal

import numpy as np

from solver.facts.model_spec import ModelSpec
from solver.facts.parameters import parameters
from solver.facts.workload import Floats, Ints
from solver.plan.memory import DeviceMemory, cache_row_bytes, dtype_bytes, memory_table, weight_bytes
from solver.plan.plan import make_buckets
from solver.plan.schedule import Role, Schedule, StageSpec
from solver.simulate.costs import Pipeline
from solver.simulate.points import Conditions

Layers = tuple[int, int]
Layout = Literal["slots", "paged"]


def block_bytes(spec: ModelSpec, tensor: int, dtype: str) -> int:
    """Weights of one layer on each device; where layers differ, less than their mean by a rounding at most."""
    if spec.encoder_layers:
        whole = weight_bytes(spec, _stage((0, spec.num_layers), tensor, "both"), dtype)
        return (whole - embed_bytes(spec, tensor, dtype) - head_bytes(spec, tensor, dtype)) // spec.num_layers
    return weight_bytes(_longer(spec), _stage((1, 2), tensor, "both"), dtype)


def embed_bytes(spec: ModelSpec, tensor: int, dtype: str) -> int:
    """Weights of the embedding on each device of a first stage."""
    if spec.encoder_layers:
        return _named_bytes(spec, tensor, dtype, "embed.")
    return weight_bytes(_longer(spec), _stage((0, 1), tensor, "both"), dtype) - block_bytes(spec, tensor, dtype)


def head_bytes(spec: ModelSpec, tensor: int, dtype: str) -> int:
    """Weights of norm and head on each device of a last stage that is not the first, too (with an encoder: that is)."""
    if spec.encoder_layers:
        return _named_bytes(spec, tensor, dtype, "head.")
    longer = _longer(spec)
    last = _stage((longer.num_layers - 1, longer.num_layers), tensor, "both")
    return weight_bytes(longer, last, dtype) - block_bytes(spec, tensor, dtype)


def cache_token_bytes(spec: ModelSpec, tensor: int, cache_dtype: str) -> int:
    """Cache of one position in one layer on each device; with an encoder, which keeps none, of the mean layer."""
    if spec.encoder_layers:
        return cache_row_bytes(spec, _stage((0, spec.num_layers), tensor, "both"), 1, cache_dtype) // spec.num_layers
    return cache_row_bytes(spec, _stage((0, 1), tensor, "both"), 1, cache_dtype)


def _named_bytes(spec: ModelSpec, tensor: int, dtype: str, prefix: str) -> int:
    found = [each for each in parameters(spec, (0, spec.num_layers), tensor) if each.path.startswith(prefix)]
    return sum(each.elements_per_device(tensor) for each in found) * dtype_bytes(dtype)


def _longer(spec: ModelSpec) -> ModelSpec:
    """The same model with two layers more, so that there is an inner one and both ends stand apart."""
    return dataclasses.replace(spec, layers=(*spec.layers, dataclasses.replace(spec.layers[0], count=2)))


def _stage(layers: tuple[int, int], tensor: int, role: Role) -> StageSpec:
    return StageSpec(role, layers, tuple(range(tensor)), tensor)


@dataclasses.dataclass(frozen=True)
class MemoryModel:
    """How bytes are counted for candidates of one model.

    Attributes:
      spec, dtype, cache_dtype: of the model.
      cache_tokens, max_prompt_tokens: of the plan.
    """

    spec: ModelSpec
    dtype: str
    cache_dtype: str
    cache_tokens: int
    max_prompt_tokens: int

    def stages_bytes(
        self,
        pipeline: Pipeline,
        role: Role,
        max_rows: Ints,
        encode_micro_batch: Ints,
        paged_tokens: Floats | None,
        token_budget: Ints | None = None,
    ) -> Floats:
        """float64 [stages, P]: total bytes on each device of each stage.

        Args:
          pipeline: where layers live; they are counted in the order of its stages.
          role: of every stage.
          max_rows: int64 [P]: allocated rows.
          encode_micro_batch: int64 [P]: rows of one encode call.
          paged_tokens: float64 [P]: cached tokens to hold, in place of rows x cache_tokens; None: slots.
          token_budget: int64 [P]: chunked: no call is longer; None: calls are as long as prompts.
        """
        longest = np.broadcast_to(self.max_prompt_tokens, max_rows.shape)
        if token_budget is not None:
            longest = np.minimum(longest, token_budget)
        shapes, where = np.unique(np.stack([max_rows, encode_micro_batch, longest]), axis=1, return_inverse=True)
        where = where.ravel()
        layer, rows = 0, []
        for stage in pipeline.stages:
            layers = (layer, layer + stage.layers)
            layer = layers[1]
            layout: Layout = "slots" if paged_tokens is None else "paged"
            alike = self._alike(layers)
            found = [
                _device_memory(self, alike, stage.unit.tensor, role, *shape, layout) for shape in shapes.T.tolist()
            ]
            total = np.array([memory.total_bytes for memory in found], np.float64)[where]
            if paged_tokens is not None and role != "encode":
                slots = np.array([memory.cache_bytes for memory in found], np.float64)[where]
                token = stage.layers * cache_token_bytes(self.spec, stage.unit.tensor, self.cache_dtype)
                total = total - slots + paged_tokens * token
            rows.append(total)
        return np.stack(rows)

    def _alike(self, layers: Layers) -> Layers:
        """The first inner stage of as many layers: it holds what every other does where all layers are of one kind."""
        inner = layers[0] > 0 and layers[1] < self.spec.num_layers
        return (1, 1 + layers[1] - layers[0]) if inner and len(self.spec.layers) == 1 else layers


@functools.lru_cache(maxsize=200_000)
def _device_memory(
    model: MemoryModel,
    layers: Layers,
    tensor: int,
    role: Role,
    max_rows: int,
    encode_micro_batch: int,
    longest_prompt: int,
    layout: Layout,
) -> DeviceMemory:
    schedule = Schedule(
        policy="rra",
        encode_batch=1,
        decode_iterations=1,
        decode_batch=1,
        max_rows=max_rows,
        stages=(_stage(layers, tensor, role),),
        micro_batch=1,
        encode_micro_batch=encode_micro_batch,
    )
    buckets = make_buckets(schedule, model.cache_tokens, longest_prompt)
    return memory_table(model.spec, schedule, buckets, model.dtype, model.cache_dtype, layout)[0]


def candidate_bytes(
    pipeline: Pipeline,
    conditions: Conditions,
    model: MemoryModel | None,
    role: Role,
    max_rows: Ints,
    encode_micro_batch: Ints,
    tokens: Floats,
    row_tokens: int,
    token_budget: Ints | None = None,
) -> Floats:
    """float64 [stages, P]: bytes on each device under the conditions' layout of the cache.

    Args:
      model: None: weights and cache by the units' own figures, nothing else.
      tokens: float64 [P]: cached tokens at their peak, for the paged layout.
      row_tokens: positions of a row, where neither model nor conditions say.
      token_budget: int64 [P]: chunked only.
    """
    paged = conditions.cache_layout == "paged"
    if model is not None:
        return model.stages_bytes(pipeline, role, max_rows, encode_micro_batch, tokens if paged else None, token_budget)
    held = tokens if paged else max_rows.astype(np.float64) * (conditions.cache_tokens or row_tokens)
    return _plain_bytes(pipeline, held * (role != "encode"))


def _plain_bytes(pipeline: Pipeline, tokens: Floats) -> Floats:
    """float64 [stages, P]: weights and so many cached tokens alone."""
    found = []
    for stage in pipeline.stages:
        unit = stage.unit
        weights = stage.layers * unit.weights_bytes + stage.first * unit.embed_bytes + stage.last * unit.head_bytes
        found.append(weights + stage.layers * unit.cache_token_bytes * tokens)
    return np.stack(found)
