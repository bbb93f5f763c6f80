"""The Runner on the real engine: the same tokens whatever the policy, B_E, N_D, batch mates, chunks or devices."""

from __future__ import annotations

import collections
import dataclasses
import random

import pytest

from exegpt_jax.engine.api import EngineError, PhaseCommand, Sampling
from exegpt_jax.engine.compiling import forbid_compilations
from exegpt_jax.engine.engine import Engine
from exegpt_jax.engine.executor import LocalExecutor
from exegpt_jax.models.random import random_stage
from exegpt_jax.runner.events import Event, Finished, Tokens
from exegpt_jax.runner.loop import Runner
from exegpt_jax.runner.request import Request
from exegpt_jax.testing.hidden_lengths import HiddenLengths
from solver.plan.buckets import Buckets
from solver.plan.plan import Plan
from solver.plan.schedule import Schedule
from tests.exegpt_jax.plain_loop import PlainLoop
from tests.exegpt_jax.tiny_models import spec_of

CACHE_TOKENS = 48
PROMPT_TOKENS = 30
# One decode shape and few encode shapes: what rungs do is tested without numerics.
BUCKETS = Buckets((1, 3), (16,), (3, 6), (CACHE_TOKENS,))


def plan_of(engine_plan: Plan, policy: str, encode_batch: int, iterations: int) -> Plan:
    """The engine's plan under other control variables."""
    schedule = dataclasses.replace(
        engine_plan.schedule,
        policy=policy,
        encode_batch=encode_batch,
        encode_micro_batch=encode_batch,
        decode_iterations=iterations,
        token_budget=13 if policy == "chunked" else 0,
    )
    return dataclasses.replace(engine_plan, schedule=schedule)


def engine_of(tensor: int) -> Engine:
    """Chunked, since that policy's programs include all others'."""
    stage = random_stage(spec_of("llama"), tensor=tensor, seed=3, scale=2.0)
    schedule = Schedule("chunked", 3, 8, 6, 6, (stage.stage,), 6, 3, token_budget=13)
    engine = Engine(stage, Plan("test", "float32", "float32", CACHE_TOKENS, PROMPT_TOKENS, schedule, BUCKETS))
    engine.warm_up()
    return engine


@pytest.fixture(scope="module")
def loop() -> PlainLoop:
    return PlainLoop(random_stage(spec_of("llama"), seed=3, scale=2.0), CACHE_TOKENS)


@pytest.fixture(scope="module")
def engine() -> Engine:
    return engine_of(1)


def requests_of(seed: int, count: int) -> list[Request]:
    rng = random.Random(seed)
    found = []
    for number in range(count):
        prompt = tuple(rng.randrange(53) for _ in range(rng.randint(1, PROMPT_TOKENS)))
        sampling = Sampling(
            max_tokens=rng.randint(1, CACHE_TOKENS - len(prompt)),
            temperature=rng.choice([0.0, 0.9]),
            repetition_penalty=rng.choice([1.0, 1.2]),
            seed=number,
            stop_ids=tuple(rng.sample(range(53), 2)),
        )
        found.append(Request(f"r{number}", prompt, sampling))
    return found


class Heard:
    """Everything a Runner said."""

    def __init__(self) -> None:
        self.tokens: dict[str, list[int]] = collections.defaultdict(list)
        self.finished: dict[str, Finished] = {}

    def __call__(self, events: list[Event]) -> None:
        for event in events:
            if isinstance(event, Tokens):
                self.tokens[event.id] += event.token_ids
            else:
                assert event.id not in self.finished
                self.finished[event.id] = event

    def check(self, requests: list[Request], loop: PlainLoop) -> None:
        """Every answer is the plain loop's, up to the first position where that one was in doubt."""
        doubtful = 0
        for request in requests:
            expected, sure = loop.answer(request.prompt_ids, request.sampling)
            end = self.finished[request.id]
            assert self.tokens[request.id][:sure] == expected[:sure], request
            if sure < len(expected):
                doubtful += 1
                continue
            assert self.tokens[request.id] == expected, request
            assert end.reason == ("stop" if expected[-1] in request.sampling.stop_ids else "length")
        assert doubtful <= 1


def run(runner: Runner, requests: list[Request], rng: random.Random) -> None:
    for request in requests:
        runner.submit(request)
        if rng.random() < 0.3:
            runner.run_phase()
    while runner.run_phase():
        pass


@pytest.mark.parametrize(
    ("policy", "encode_batch", "iterations"),
    [("rra", 1, 8), ("rra", 3, 2), ("static", 3, 5), ("iteration", 2, 1), ("chunked", 1, 1)],
)
def test_the_same_tokens_under_every_schedule(
    engine: Engine, loop: PlainLoop, policy: str, encode_batch: int, iterations: int
) -> None:
    heard, executor = Heard(), LocalExecutor(engine)
    runner = Runner(plan_of(engine.plan, policy, encode_batch, iterations), executor, heard)
    requests = requests_of(1, 24)
    with forbid_compilations():
        run(runner, requests, random.Random(encode_batch))
    stats = runner.stats()
    heard.check(requests, loop)
    assert (stats.waiting, stats.running, stats.live_bytes, stats.failed_phases) == (0, 0, 0, 0)
    assert stats.compilations == 0


def test_two_devices_give_the_same_tokens(loop: PlainLoop) -> None:
    engine = engine_of(2)
    heard = Heard()
    requests = requests_of(2, 16)
    run(Runner(plan_of(engine.plan, "rra", 2, 4), LocalExecutor(engine), heard), requests, random.Random(2))
    heard.check(requests, loop)


def test_random_cancels_leave_no_bytes(engine: Engine, loop: PlainLoop, full: bool) -> None:
    heard, executor, rng = Heard(), LocalExecutor(engine), random.Random(3)
    runner = Runner(plan_of(engine.plan, "rra", 3, 4), executor, heard)
    requests = requests_of(3, 10_000 if full else 100)
    for request in requests:
        runner.submit(request)
        if rng.random() < 0.4:
            runner.cancel(rng.choice(requests).id)
        if rng.random() < 0.3:
            runner.run_phase()
    while runner.run_phase():
        pass
    assert len(heard.finished) == len(requests)
    assert executor.live_bytes() == 0
    assert runner.stats().failed_phases == 0
    answered = [request for request in requests if heard.finished[request.id].reason != "abort"]
    assert len(answered) < len(requests)
    heard.check(answered[:60], loop)


class Failing(LocalExecutor):
    """A real executor whose programs fail in one phase, after the state was donated to them."""

    def dispatch(self, command: PhaseCommand):  # type: ignore[no-untyped-def]
        pending = super().dispatch(command)
        if command.phase == 3:
            raise EngineError("the device hiccuped")
        return pending


def test_a_failing_phase_costs_its_requests_and_the_rest_is_right(engine: Engine, loop: PlainLoop) -> None:
    heard, executor = Heard(), Failing(engine)
    runner = Runner(plan_of(engine.plan, "rra", 2, 3), executor, heard)
    requests = requests_of(4, 30)
    run(runner, requests, random.Random(4))
    failed = [request for request in requests if heard.finished[request.id].reason == "error"]
    assert 0 < len(failed) <= 6
    assert runner.stats().failed_phases == 1
    assert executor.live_bytes() == 0
    heard.check([request for request in requests if request not in failed], loop)


def test_hidden_lengths_end_answers_where_the_task_says(engine: Engine) -> None:
    heard = Heard()
    lengths = [random.Random(5).randint(1, 18) for _ in range(20)]
    hidden = HiddenLengths(LocalExecutor(engine), lambda row: lengths[row.request])
    runner = Runner(plan_of(engine.plan, "rra", 2, 4), hidden, heard)
    for number in range(20):
        runner.submit(Request(str(number), (1, 2, 3), Sampling(max_tokens=18)))
    while runner.run_phase():
        pass
    assert [len(heard.tokens[str(number)]) for number in range(20)] == lengths
    reasons = [heard.finished[str(number)].reason for number in range(20)]
    assert reasons == ["length" if length == 18 else "stop" for length in lengths]
