"""Requests in order through a bounded window, over the real Runner and the fake engine."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from exegpt_jax.runner.events import Tokens
from exegpt_jax.session import Completion, Failure, Session, complete_in_order
from exegpt_jax.testing.fake import FakeExecutor
from exegpt_jax.text.prompts import ModelText, Prepared
from solver.facts.model_config import parse_config
from solver.plan.plan import make_plan
from solver.plan.schedule import Schedule, StageSpec

CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "vocab_size": 300,
    "hidden_size": 8,
    "intermediate_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 1,
    "max_position_embeddings": 64,
    "rms_norm_eps": 1e-5,
    "hidden_act": "silu",
    "torch_dtype": "float32",
}
TEXT = ModelText(
    tokenizer=None, chat=None, eos_ids=(299,), defaults={}, vocab_size=300, max_prompt_tokens=32, cache_tokens=64
)


def make_session(step_s: float = 0.0) -> Session:
    spec = parse_config(CONFIG)
    stages = (StageSpec("both", (0, 1), (0,), 1),)
    schedule = Schedule("rra", 3, 4, 6, 6, stages, 6, 3)
    plan = make_plan(
        spec,
        schedule,
        model="fake",
        dtype="float32",
        cache_dtype="float32",
        cache_tokens=64,
        max_prompt_tokens=32,
    )
    return Session(plan, FakeExecutor(plan, 300, step_s=step_s), TEXT)


@pytest.fixture(scope="module")
def session() -> Iterator[Session]:
    with make_session() as running:
        yield running


@settings(max_examples=20)
@given(
    lengths=st.lists(st.one_of(st.none(), st.integers(1, 25)), max_size=30),
    window=st.integers(1, 12),
)
def test_outcomes_come_in_order_whatever_the_window(session: Session, lengths: list[int | None], window: int) -> None:
    taken = 0

    def items() -> Iterator[tuple[int, Prepared | Failure]]:
        nonlocal taken
        for key, length in enumerate(lengths):
            taken += 1
            if length is None:
                yield key, Failure("bad")
            else:
                yield key, TEXT.prepare({"prompt": [key + 1, 7], "max_tokens": length, "ignore_eos": True})

    returned = 0
    for key, outcome in complete_in_order(session, items(), window):
        assert key == returned
        returned += 1
        # One more may be read and wait for room.
        assert taken <= returned + window + 1
        length = lengths[key]
        if length is None:
            assert outcome == Failure("bad")
        else:
            assert isinstance(outcome, Completion)
            assert (outcome.completion_tokens, outcome.finish_reason) == (length, "length")
            assert len(outcome.token_ids) == length
    assert returned == len(lengths)


def test_what_the_source_raises_is_raised_to_the_caller(session: Session) -> None:
    def items() -> Iterator[tuple[int, Prepared]]:
        yield 0, TEXT.prepare({"prompt": [1], "max_tokens": 2})
        raise OSError("disk")

    with pytest.raises(OSError, match="disk"):
        list(complete_in_order(session, items(), 4))


def test_leaving_early_cancels_and_ends_the_reading_thread() -> None:
    with make_session(step_s=0.002) as session:

        def items() -> Iterator[tuple[int, Prepared]]:
            for key in range(10_000):
                yield key, TEXT.prepare({"prompt": [1], "max_tokens": 5})

        outcomes = complete_in_order(session, items(), 8)
        next(outcomes)
        outcomes.close()
        end_s = time.monotonic() + 10
        while any(thread.name == "read items" for thread in threading.enumerate()):
            assert time.monotonic() < end_s
            time.sleep(0.01)


def test_two_conversations_share_a_runner(session: Session) -> None:
    first, second = session.conversation(), session.conversation()
    asked = TEXT.prepare({"prompt": [9, 9], "max_tokens": 6, "ignore_eos": True})
    ids = [conversation.ask(asked) for conversation in (first, second)]
    found = []
    for conversation, request_id in zip((first, second), ids, strict=True):
        whole: list[Completion] = []
        while not whole:
            for got_id, outcome in conversation.read(conversation.wait()):
                assert got_id == request_id
                if isinstance(outcome, Completion):
                    whole.append(outcome)
        found.append(whole[0].token_ids)
    assert found[0] == found[1]


def test_events_of_a_forgotten_request_go_nowhere(session: Session) -> None:
    conversation = session.conversation()
    request_id = conversation.ask(TEXT.prepare({"prompt": [3], "max_tokens": 30, "ignore_eos": True}))
    conversation.cancel_all()
    assert list(conversation.read([Tokens(request_id, (1,))])) == []
