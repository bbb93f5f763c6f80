"""What every contestant has to do: token prompts and, hidden from it, how long each answer is."""

from __future__ import annotations

import dataclasses

import numpy as np

PROMPT_TOKENS = 64
NEW_TOKENS = 128


@dataclasses.dataclass(frozen=True)
class Case:
    """One run.

    Attributes:
      name: "batch-8" or "mixed-256".
      prompts: token ids per request; ids below 4 never occur.
      output_tokens: tokens each answer has, known to the harness alone.
      max_tokens: the most that a contestant is told.
      batch: rows decoded together (the static batch of contestants that have one).
    """

    name: str
    prompts: tuple[tuple[int, ...], ...]
    output_tokens: tuple[int, ...]
    max_tokens: int
    batch: int

    @property
    def new_tokens(self) -> int:
        return sum(self.output_tokens)


def fixed(batch: int, vocab_size: int, seed: int = 0) -> Case:
    """`batch` prompts of 64 tokens, 128 new tokens each."""
    rng = np.random.default_rng(seed)
    prompts = rng.integers(4, vocab_size, size=(batch, PROMPT_TOKENS))
    return Case(f"batch-{batch}", _ids(prompts), (NEW_TOKENS,) * batch, NEW_TOKENS, batch)


def mixed(requests: int, batch: int, vocab_size: int, seed: int = 0) -> Case:
    """Conversation lengths after ExeGPT's task C1 (Table 3), prompts scaled by 1/4.

    Outputs: ceil of a normal (62.0, 32.4) truncated to [0, 160], whose mean is 64 and 99th percentile 137. Prompts:
    normal (64, 29) truncated to [8, 128].
    """
    rng = np.random.default_rng(seed)
    outputs = np.ceil(_truncated_normal(rng, 62.0, 32.4, 0.0, 160.0, requests)).astype(int)
    lengths = np.ceil(_truncated_normal(rng, 64.0, 29.0, 8.0, 128.0, requests)).astype(int)
    prompts = tuple(tuple(int(t) for t in rng.integers(4, vocab_size, size=n)) for n in lengths)
    return Case(f"mixed-{requests}", prompts, tuple(int(max(1, s)) for s in outputs), 160, batch)


def _truncated_normal(
    rng: np.random.Generator, mean: float, deviation: float, low: float, high: float, count: int
) -> np.ndarray:
    kept = np.empty(0)
    while kept.size < count:
        draw = rng.normal(mean, deviation, size=2 * count)
        kept = np.concatenate([kept, draw[(draw > low) & (draw <= high)]])
    return kept[:count]


def _ids(prompts: np.ndarray) -> tuple[tuple[int, ...], ...]:
    return tuple(tuple(int(t) for t in row) for row in prompts)
