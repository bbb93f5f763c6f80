"""The compiled shapes that a plan's calls may have, beside the rungs of its buckets."""

from __future__ import annotations

from solver.plan.buckets import attended_tokens
from solver.plan.plan import Plan


def decode_shapes(plan: Plan) -> tuple[tuple[int, int], ...]:
    """(rows, attended positions) of every decode call. Rungs of positions that no call would choose are left out."""
    rungs, iterations = plan.buckets.cache_tokens, plan.schedule.decode_iterations
    return tuple(
        (rows, tokens)
        for rows in plan.buckets.decode_rows
        for tokens in rungs
        if attended_tokens(tokens, iterations, rows == plan.schedule.max_rows, rungs) == tokens
    )


def chunk_contexts(plan: Plan) -> tuple[int, ...]:
    """Lengths that a prompt in chunks may have: none where every prompt fits one call."""
    largest, longest = plan.buckets.encode_tokens[-1], plan.max_prompt_tokens
    contexts = plan.buckets.cache_tokens
    if plan.schedule.policy == "chunked":
        return tuple(c for i, c in enumerate(contexts) if i == 0 or contexts[i - 1] < longest)
    if longest <= largest:
        return ()
    return tuple(c for i, c in enumerate(contexts) if c > largest and (i == 0 or contexts[i - 1] < longest))


def chunk_tokens(plan: Plan, context: int) -> tuple[int, ...]:
    """Sizes of the chunks of such a prompt: of the largest rung, except where the token budget cuts them."""
    ladder = plan.buckets.encode_tokens
    sizes = ladder if plan.schedule.policy == "chunked" else ladder[-1:]
    return tuple(tokens for tokens in sizes if tokens <= context)
