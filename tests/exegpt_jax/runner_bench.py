"""A Runner driven by hand over the hand-computable executor, and a check that every request got exactly its tokens."""

from __future__ import annotations

import collections
import random

from exegpt_jax.engine.api import PhaseCommand, Sampling
from exegpt_jax.runner.events import Event, Finished, Tokens
from exegpt_jax.runner.loop import Runner
from exegpt_jax.runner.request import Request
from exegpt_jax.testing import fake
from solver.facts.model_spec import LayerKind, LayerRun, ModelSpec
from solver.plan.plan import Plan, make_plan
from solver.plan.schedule import Schedule, StageSpec

VOCAB = 97
SPEC = ModelSpec(
    family="llama",
    vocab_size=VOCAB,
    hidden_size=8,
    mlp_size=8,
    heads=1,
    kv_heads=1,
    head_dim=8,
    layers=(LayerRun(LayerKind(), 1),),
    max_positions=4096,
    norm="rms",
    norm_eps=1e-5,
    activation="silu",
    gated_mlp=True,
    qkv_bias=False,
    output_bias=False,
    mlp_bias=False,
    qk_norm=False,
    rope=None,
    position_offset=0,
    tied_embeddings=True,
)


def plan_of(
    policy: str,
    *,
    encode_batch: int = 4,
    iterations: int = 5,
    rows: int = 12,
    decode_batch: int | None = None,
    budget: int = 24,
    cache_tokens: int = 128,
    prompt_tokens: int = 60,
) -> Plan:
    schedule = Schedule(
        policy=policy,  # type: ignore[arg-type]
        encode_batch=min(encode_batch, rows),
        decode_iterations=iterations,
        decode_batch=decode_batch or rows,
        max_rows=rows,
        stages=(StageSpec("both", (0, 1), (0,), 1),),
        micro_batch=rows,
        encode_micro_batch=min(encode_batch, rows),
        token_budget=budget if policy == "chunked" else 0,
    )
    return make_plan(
        SPEC,
        schedule,
        model="test",
        dtype="float32",
        cache_dtype="float32",
        cache_tokens=cache_tokens,
        max_prompt_tokens=prompt_tokens,
    )


class Bench:
    """A Runner driven by hand, and everything it said."""

    def __init__(self, plan: Plan, **options: object) -> None:
        self.now_s = 0.0
        self.commands: list[PhaseCommand] = []
        self.executor = fake.FakeExecutor(plan, VOCAB, **options)  # type: ignore[arg-type]
        self.tokens: dict[str, list[int]] = collections.defaultdict(list)
        self.finished: dict[str, Finished] = {}
        self.runner = Runner(plan, self.executor, self.hear, clock=self.clock)
        dispatch = self.executor.dispatch
        self.executor.dispatch = lambda command: (self.commands.append(command), dispatch(command))[1]  # type: ignore

    def clock(self) -> float:
        self.now_s += 0.001
        return self.now_s

    def hear(self, events: list[Event]) -> None:
        for event in events:
            assert event.id not in self.finished, "an event after the last one"
            if isinstance(event, Tokens):
                self.tokens[event.id] += event.token_ids
            else:
                self.finished[event.id] = event

    def ask(self, name: str, prompt: tuple[int, ...], max_tokens: int, **more: object) -> Request:
        sampling = Sampling(max_tokens=max_tokens, stop_ids=(3, 50))
        request = Request(name, prompt, sampling, **more)  # type: ignore[arg-type]
        self.runner.submit(request)
        return request

    def run(self) -> None:
        for _ in range(10_000):
            if not self.runner.run_phase():
                return
        raise AssertionError("the runner does not come to rest")

    def check(self, requests: list[Request], failed_phases: int = 0) -> None:
        """Exact tokens and reasons; nothing left behind; no contract broken, which would fail a phase."""
        assert self.runner.stats().failed_phases == failed_phases
        for request in requests:
            expected = fake.answer(request.prompt_ids, request.sampling, VOCAB)[len(request.generated_ids) :]
            end = self.finished[request.id]
            got = tuple(self.tokens[request.id])
            if end.reason in ("stop", "length"):
                assert got == expected
                assert (end.reason == "stop") == (expected[-1] in request.sampling.stop_ids)
                assert end.completion_tokens == len(expected) + len(request.generated_ids)
                times = end.times
                assert times.arrival_s < times.encode_start_s < times.first_token_s <= times.last_token_s
            else:
                assert got == expected[: len(got)]
        assert self.executor.live_bytes() == 0
        stats = self.runner.stats()
        assert (stats.waiting, stats.running, stats.live_bytes) == (0, 0, 0)


def prompts(seed: int, count: int, longest: int) -> list[tuple[int, ...]]:
    rng = random.Random(seed)
    return [tuple(rng.randrange(VOCAB) for _ in range(rng.randint(1, longest))) for _ in range(count)]


def run_at_random(bench: Bench, rng: random.Random) -> None:
    """Two waves of requests, turns in between, cancels and deadlines; everybody gets their tokens."""
    requests = []
    for wave in range(2):  # the second wave finds what the first, emptied and compacted, left
        for number, prompt in enumerate(prompts(rng.randrange(10**9), rng.randint(1, 40), 60)):
            deadline_s = bench.now_s + rng.random() * 0.05 if rng.random() < 0.1 else None
            requests.append(bench.ask(f"r{wave}.{number}", prompt, rng.randint(1, 68), deadline_s=deadline_s))
            while rng.random() < 0.6:
                bench.runner.run_phase()
            if rng.random() < 0.3:
                bench.runner.cancel(rng.choice(requests).id)
        bench.run()
    assert set(bench.finished) == {request.id for request in requests}
    bench.check(requests)
