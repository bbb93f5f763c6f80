"""The Plan: what the planner decides, the simulator replays, the runner executes and the server publishes.

One JSON file, deterministic and hashed. Nothing else crosses from deciding to running.
"""

from __future__ import annotations

import dataclasses
import hashlib
from typing import Literal

from solver.facts.model_spec import ModelSpec
from solver.plan import strict_json
from solver.plan.bands import unknown_bands
from solver.plan.bounds import Bounds
from solver.plan.buckets import Buckets, ladder
from solver.plan.certificate import Certificate, Margins, RunnerUp
from solver.plan.inputs import Inputs
from solver.plan.prediction import Prediction, StageMemory
from solver.plan.schedule import CORRECTED_POLICIES, Schedule

__all__ = ["Plan", "Prediction", "from_json", "make_buckets", "make_plan"]

SCHEMA_VERSION = 1
# Tokens of one prompt in one encode call; longer prompts are encoded in chunks of this.
LARGEST_CHUNK_TOKENS = 512
# Prompt tokens of one encode call at most, so that its activations stay small beside the cache.
CALL_TOKENS = 8192
_SMALLEST_PROMPT_TOKENS = 16
_SMALLEST_CACHE_TOKENS = 64
_PROMPT_RUNGS = 4
_DECODE_ROW_RUNGS = 4
_CACHE_RUNGS = 4


@dataclasses.dataclass(frozen=True)
class Plan:
    """Everything a run needs to know.

    Attributes:
      model: digest of the checkpoint, or a name where there are no weights.
      dtype: of weights and activations.
      cache_dtype: of keys and values.
      cache_tokens: allocated positions per row: prompt plus output.
      max_prompt_tokens: longest prompt that is taken.
      schedule: the control variables.
      buckets: the shapes that programs are compiled for.
      first_token: of an answer, by which phase (`solver.facts.model_spec`).
      cache_layout: "slots": max_rows x cache_tokens.
      compaction: when finished rows leave the batch.
      delivery: when tokens reach those who asked.
      prediction: None where nothing was measured or simulated.
      replicas: copies of the stages, each on devices of its own; the schedule names those of the first copy.
      inputs: what it was made from; None, as all that follows, where flags built the plan.
      bounds: what it keeps.
      memory: one entry per stage; empty where nothing was planned.
      certificate: what the search proves.
      runners_up: the best of the others.
      margins: how far facts may move.
      schema_version: of this file format.
    """

    model: str
    dtype: str
    cache_dtype: str
    cache_tokens: int
    max_prompt_tokens: int
    schedule: Schedule
    buckets: Buckets
    first_token: Literal["encode", "decode"] = "encode"
    cache_layout: Literal["slots", "paged"] = "slots"
    compaction: Literal["iteration", "phase"] = "phase"
    delivery: Literal["iteration", "phase", "phase+1"] = "phase"
    prediction: Prediction | None = None
    replicas: int = 1
    inputs: Inputs | None = None
    bounds: Bounds | None = None
    memory: tuple[StageMemory, ...] = ()
    certificate: Certificate | None = None
    runners_up: tuple[RunnerUp, ...] = ()
    margins: Margins | None = None
    schema_version: int = SCHEMA_VERSION

    def __post_init__(self) -> None:
        if self.schema_version != SCHEMA_VERSION:
            raise ValueError(
                f"schema_version: {self.schema_version}, but this program reads {SCHEMA_VERSION}; plan again"
            )
        if self.buckets.cache_tokens[-1] != self.cache_tokens:
            raise ValueError(
                f"buckets.cache_tokens: ends at {self.buckets.cache_tokens[-1]}, not at {self.cache_tokens}"
            )
        if self.buckets.decode_rows[-1] != self.schedule.max_rows:
            raise ValueError(
                f"buckets.decode_rows: ends at {self.buckets.decode_rows[-1]}, not at max_rows={self.schedule.max_rows}"
            )
        if not 0 < self.max_prompt_tokens < self.cache_tokens:
            raise ValueError(
                f"max_prompt_tokens: {self.max_prompt_tokens} leaves no room for output in "
                f"cache_tokens={self.cache_tokens}"
            )
        if self.replicas < 1:
            raise ValueError(f"replicas: {self.replicas} is too small; give at least 1")
        for name, table in (("memory", self.memory), ("prediction.stages", self._predicted_stages)):
            if table and len(table) != len(self.schedule.stages):
                raise ValueError(f"{name}: {len(table)} entries for {len(self.schedule.stages)} stages; plan again")

    @property
    def _predicted_stages(self) -> tuple[object, ...]:
        return self.prediction.stages if self.prediction is not None else ()

    def to_json(self) -> str:
        """Deterministic text: equal plans are byte-identical."""
        return strict_json.to_json(self)

    @property
    def digest(self) -> str:
        """sha256 of `to_json`."""
        return hashlib.sha256(self.to_json().encode()).hexdigest()


def from_json(text: str) -> Plan:
    """Reads `Plan.to_json`. Raises ValueError with one line that names the field at fault."""
    return strict_json.from_json(Plan, text, "plan")


def make_plan(
    spec: ModelSpec,
    schedule: Schedule,
    *,
    model: str,
    dtype: str,
    cache_dtype: str,
    cache_tokens: int,
    max_prompt_tokens: int,
) -> Plan:
    """A Plan whose buckets follow from the schedule, its bands too where it has none.

    Raises:
      ValueError: lengths, or the policy, do not fit the model.
    """
    if spec.encoder_layers and schedule.policy == "chunked":
        raise ValueError(f"policy: chunked cannot run {spec.family}: its encoder reads whole prompts; choose another")
    if cache_tokens > spec.max_positions:
        raise ValueError(f"cache_tokens: {cache_tokens} exceeds the model's {spec.max_positions} positions; lower it")
    if cache_tokens < 2:
        raise ValueError(f"cache_tokens: {cache_tokens} is too small; give at least 2")
    longest_prompt = min(max_prompt_tokens, cache_tokens - 1, longest_whole_prompt(spec))
    if schedule.bands is None and schedule.policy in CORRECTED_POLICIES:
        bands = unknown_bands(schedule.encode_batch, schedule.decode_batch, schedule.max_rows, longest_prompt)
        schedule = dataclasses.replace(schedule, bands=bands)
    return Plan(
        model=model,
        dtype=dtype,
        cache_dtype=cache_dtype,
        cache_tokens=cache_tokens,
        max_prompt_tokens=longest_prompt,
        schedule=schedule,
        buckets=make_buckets(schedule, cache_tokens, longest_prompt),
        first_token=spec.first_token,
    )


def longest_whole_prompt(spec: ModelSpec) -> int:
    """The longest prompt that any plan takes: an encoder reads a prompt in one call, as others need not."""
    return LARGEST_CHUNK_TOKENS if spec.encoder_layers else spec.max_positions


def encode_call_rows(encode_batch: int, max_prompt_tokens: int) -> int:
    """Rows of one encode call: the whole batch, unless its activations would be large."""
    return min(encode_batch, max(1, CALL_TOKENS // min(max_prompt_tokens, LARGEST_CHUNK_TOKENS)))


def make_buckets(schedule: Schedule, cache_tokens: int, max_prompt_tokens: int) -> Buckets:
    """Few rungs, since each pair of them is a program to compile; factors keep padding below about a half."""
    longest_call = min(max_prompt_tokens, LARGEST_CHUNK_TOKENS)
    if schedule.policy == "chunked":
        longest_call = min(longest_call, schedule.token_budget)
    rows = schedule.max_rows
    cache_first = max(_SMALLEST_CACHE_TOKENS, -(-cache_tokens // 2 ** (_CACHE_RUNGS - 1)))
    return Buckets(
        encode_rows=ladder(1, schedule.encode_micro_batch, 4.0),
        encode_tokens=ladder(max(_SMALLEST_PROMPT_TOKENS, longest_call // 2 ** (_PROMPT_RUNGS - 1)), longest_call),
        decode_rows=ladder(max(1, rows // 2 ** (_DECODE_ROW_RUNGS - 1)), rows),
        cache_tokens=ladder(cache_first, cache_tokens),
    )
