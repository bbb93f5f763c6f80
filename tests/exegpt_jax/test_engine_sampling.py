"""Sampling against a plain NumPy oracle, every parameter alone and combined, and against the distribution it claims."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from exegpt_jax.engine.api import MAX_LOGIT_BIAS, MAX_LOGPROBS, MAX_STOP_IDS, Sampling
from exegpt_jax.engine.sampling import Counts, choose, count_tokens, pack

VOCAB, PADDED, ROWS = 23, 24, 3


@functools.partial(jax.jit, static_argnums=5)
def run(logits, wanted, counts, position, generated, vocab_size):
    return choose(logits, wanted, counts, position, generated, jnp.ones(len(logits), jnp.bool_), vocab_size)


def scores(logits: np.ndarray, one: Sampling, prompt: list[int], output: list[int]) -> np.ndarray:
    """Scores after every adjustment and filter, in float64; -inf is out."""
    x = logits.astype(np.float64)
    for token, bias in one.logit_bias:
        x[token] += bias
    for token in set(prompt) | set(output):
        x[token] = x[token] / one.repetition_penalty if x[token] > 0 else x[token] * one.repetition_penalty
    for token in set(output):
        x[token] -= one.presence_penalty + one.frequency_penalty * output.count(token)
    if len(output) < one.min_tokens:
        x[list(one.stop_ids)] = -np.inf
    if one.temperature < 1e-5:
        return x
    x = x / one.temperature
    if one.min_p > 0:
        x[x < x.max() + np.log(one.min_p) - 1e-9] = -np.inf
    if one.top_k > 0:
        x[x < np.sort(x)[::-1][min(one.top_k, len(x)) - 1]] = -np.inf
    order = np.argsort(-x, kind="stable")
    share = np.exp(x[order] - x.max())
    share /= share.sum()
    before = np.cumsum(share) - share
    kept = [token for place, token in enumerate(order) if place == 0 or before[place] < one.top_p]
    out = np.full_like(x, -np.inf)
    out[kept] = x[kept]
    return out


sampling = st.builds(
    Sampling,
    max_tokens=st.just(50),
    min_tokens=st.sampled_from([0, 0, 5]),
    temperature=st.sampled_from([0.0, 0.0, 0.5, 1.0, 2.0]),
    top_k=st.sampled_from([0, 0, 1, 5, 100]),
    top_p=st.sampled_from([1.0, 1.0, 0.01, 0.6]),
    min_p=st.sampled_from([0.0, 0.0, 0.2]),
    presence_penalty=st.sampled_from([0.0, 0.0, 1.5, -2.0]),
    frequency_penalty=st.sampled_from([0.0, 0.0, 0.7]),
    repetition_penalty=st.sampled_from([1.0, 1.0, 1.8, 0.4]),
    seed=st.integers(-(2**63), 2**63 - 1),
    stop_ids=st.lists(st.integers(0, VOCAB - 1), max_size=4, unique=True).map(tuple),
    logit_bias=st.lists(
        st.tuples(st.integers(0, VOCAB - 1), st.sampled_from([-100.0, 3.0])), max_size=3, unique_by=lambda b: b[0]
    ).map(tuple),
    logprobs=st.sampled_from([None, 3]),
)
tokens = st.lists(st.integers(0, VOCAB - 1), max_size=8)


@settings(max_examples=150, deadline=None)
@given(st.lists(st.tuples(sampling, tokens, tokens), min_size=ROWS, max_size=ROWS), st.integers(0, 2**32 - 1))
def test_agrees_with_the_oracle(rows: list, seed: int) -> None:
    rng = np.random.default_rng(seed)
    logits = rng.normal(size=(ROWS, PADDED)).astype(np.float32) * 3
    logits[:, VOCAB:] = -1e30
    history = np.zeros((ROWS, 16), np.int32)
    for row, (_, prompt, output) in enumerate(rows):
        history[row, : len(prompt) + len(output)] = prompt + output
    lengths = np.array([len(prompt) + len(output) for _, prompt, output in rows], np.int32)
    generated = np.array([len(output) for _, _, output in rows], np.int32)
    counts = count_tokens(jnp.asarray(history), jnp.asarray(lengths), jnp.asarray(generated), PADDED)
    wanted = pack([one for one, _, _ in rows], ROWS)
    got = jax.tree.map(np.asarray, run(logits, wanted, counts, lengths, generated, VOCAB))
    for row, (one, prompt, output) in enumerate(rows):
        expected = scores(logits[row, :VOCAB], one, prompt, output)
        if one.temperature >= 1e-5:
            key = jax.random.wrap_key_data(np.array([(one.seed >> 32) & 0xFFFFFFFF, one.seed & 0xFFFFFFFF], np.uint32))
            expected = expected + np.asarray(jax.random.gumbel(jax.random.fold_in(key, lengths[row]), (VOCAB,)))
        best, second = np.sort(expected)[::-1][:2]
        if best - second > 1e-4:
            assert got.token[row] == np.argmax(expected)
        if one.logprobs is not None:
            plain = logits[row, :VOCAB].astype(np.float64)
            logprobs = plain - plain.max() - np.log(np.exp(plain - plain.max()).sum())
            np.testing.assert_allclose(got.logprob[row], logprobs[got.token[row]], atol=1e-4)
            order = np.argsort(-logprobs)[:MAX_LOGPROBS]
            np.testing.assert_allclose(got.top[row], logprobs[order], atol=1e-4)


def test_a_row_does_not_depend_on_its_neighbours_or_place() -> None:
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(1, PADDED)).astype(np.float32)
    one = Sampling(max_tokens=9, temperature=1.0, seed=12345, top_p=0.9)
    empty = Counts(np.zeros((1, PADDED), np.int32), np.zeros((1, PADDED), np.bool_))
    alone = run(logits, pack([one], 1), empty, np.array([7], np.int32), np.array([0], np.int32), VOCAB)
    many = np.repeat(logits, 5, axis=0)
    others = [Sampling(max_tokens=9, temperature=0.3, seed=s, presence_penalty=1.0) for s in range(4)]
    counts = Counts(np.zeros((5, PADDED), np.int32), np.zeros((5, PADDED), np.bool_))
    position = np.array([1, 2, 3, 4, 7], np.int32)
    together = run(many, pack([*others, one], 5), counts, position, np.zeros(5, np.int32), VOCAB)
    assert int(alone.token[0]) == int(together.token[4])


@pytest.mark.parametrize("one", [Sampling(9, temperature=0.7), Sampling(9, temperature=1.3, top_p=0.8, top_k=6)])
def test_draws_follow_the_distribution(one: Sampling) -> None:
    draws = 4000
    logits = np.full((1, PADDED), -1e30, np.float32)
    logits[0, :VOCAB] = np.random.default_rng(1).normal(size=VOCAB) * 1.5
    kept = scores(logits[0, :VOCAB], one, [], [])
    share = np.exp(kept - kept.max())
    share /= share.sum()
    counts = Counts(np.zeros((draws, PADDED), np.int32), np.zeros((draws, PADDED), np.bool_))
    rows = [
        Sampling(one.max_tokens, temperature=one.temperature, top_p=one.top_p, top_k=one.top_k, seed=s)
        for s in range(draws)
    ]
    zeros = np.zeros(draws, np.int32)
    got = run(np.repeat(logits, draws, axis=0), pack(rows, draws), counts, zeros, zeros, VOCAB)
    seen = np.bincount(np.asarray(got.token), minlength=VOCAB)[:VOCAB]
    assert (seen[share == 0] == 0).all()
    expected = share[share > 0] * draws
    chi2 = ((seen[share > 0] - expected) ** 2 / expected).sum()
    freedom = (share > 0).sum() - 1
    assert chi2 < freedom + 5 * np.sqrt(2 * freedom)


def test_too_many_stops_and_biases_are_refused_by_name() -> None:
    with pytest.raises(ValueError, match="stop_token_ids: 17 exceed the limit of 16"):
        pack([Sampling(1, stop_ids=tuple(range(MAX_STOP_IDS + 1)))], 1)
    with pytest.raises(ValueError, match="logit_bias: 65 exceed the limit of 64"):
        pack([Sampling(1, logit_bias=tuple((i, 1.0) for i in range(MAX_LOGIT_BIAS + 1)))], 1)
