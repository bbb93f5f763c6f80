"""Every encode and decode program run once before anybody waits for it.

Compiled is not ready: XLA prepares parts of a program at its first run (on a CPU some 100 ms for a small model, many
times what the run itself takes), and that would be the first request's to wait for.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import cast

from exegpt_jax.engine.api import (
    NO_SLOT_YET,
    ApartExecutor,
    DecodeCall,
    EncodeCall,
    EncodeRow,
    Executor,
    PhaseCommand,
    Sampling,
)
from exegpt_jax.engine.call_shapes import chunk_contexts, chunk_tokens, decode_shapes
from solver.plan.micro_batches import decode_parts
from solver.plan.plan import Plan
from solver.plan.under_way import works_apart

# An encode call of three numbers: rows, tokens, and the context of a chunk, 0 for whole prompts.
_Shape = tuple[int, int, int]


def rehearse(executor: Executor, plan: Plan) -> int:
    """One prompt of one token goes through each shape alone and is freed; returns how many phases that took.

    Raises EngineError as any phase does.
    """
    encodes, decodes = encode_shapes(plan), decode_shapes(plan)
    turns = max(len(encodes), len(decodes))
    # The shorter list goes on with its smallest shape, which costs least.
    for turn in range(turns):
        encode = encodes[turn] if turn < len(encodes) else encodes[0]
        rows, tokens = decodes[turn] if turn < len(decodes) else decodes[0]
        parts = decode_parts(plan.schedule)
        if works_apart(plan.schedule):
            part = 0 if parts > 1 else None
            _run_apart(cast(ApartExecutor, executor), plan, turn, encode, DecodeCall(1, rows, tokens, part))
        else:
            command = PhaseCommand(turn, encode=(_call(plan, turn, encode, 0),), decode=DecodeCall(1, rows, tokens))
            pending = executor.dispatch(command)
            pending.encoded()
            pending.decoded()
            executor.dispatch(PhaseCommand(turn, release=(0,)))
    return turns


def encode_shapes(plan: Plan) -> tuple[_Shape, ...]:
    """Of all encode calls, the smallest first."""
    buckets = plan.buckets
    whole: Iterator[_Shape] = ((rows, tokens, 0) for rows in buckets.encode_rows for tokens in buckets.encode_tokens)
    chunks = ((1, tokens, context) for context in chunk_contexts(plan) for tokens in chunk_tokens(plan, context))
    return tuple(itertools.chain(whole, chunks))


def _run_apart(executor: ApartExecutor, plan: Plan, turn: int, encode: _Shape, decode: DecodeCall) -> None:
    """The same where the prompt is handed over first."""
    travelling = executor.dispatch(PhaseCommand(turn, encode=(_call(plan, turn, encode, NO_SLOT_YET),)))
    travelling.encoded()
    travelling.arrive()
    executor.dispatch(PhaseCommand(turn, insert=((turn, 0),), decode=decode)).decoded()
    executor.dispatch(PhaseCommand(turn, release=(0,)))


def _call(plan: Plan, turn: int, shape: _Shape, slot: int) -> EncodeCall:
    rows, tokens, context = shape
    # The first token comes out of the encode call, one more out of the decode call, where there is room.
    sampling = Sampling(max_tokens=min(2, plan.cache_tokens - 1))
    return EncodeCall((EncodeRow(turn, (0,), 0, slot, sampling),), rows, tokens, context)
