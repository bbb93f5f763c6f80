"""The engine's tokens against full recomputation, whatever slots, batches, buckets, chunks, moves and devices do."""

from __future__ import annotations

import dataclasses
import random

import jax
import numpy as np
import pytest

from exegpt_jax.engine.api import (
    NO_SLOT,
    DecodeCall,
    EncodeCall,
    EncodeRow,
    EngineError,
    PhaseCommand,
    Sampling,
)
from exegpt_jax.engine.compiling import Program, forbid_compilations
from exegpt_jax.engine.engine import Engine
from exegpt_jax.engine.executor import LocalExecutor
from exegpt_jax.models.random import random_stage
from solver.facts.model_spec import ModelSpec
from solver.plan.buckets import Buckets, round_up
from solver.plan.memory import cache_row_bytes
from solver.plan.plan import Plan
from solver.plan.schedule import Schedule
from tests.exegpt_jax.plain_loop import PlainLoop
from tests.exegpt_jax.tiny_models import spec_of

CACHE_TOKENS = 48


def engine_of(spec: ModelSpec, policy: str, buckets: Buckets, tensor: int = 1, iterations: int = 7) -> Engine:
    stage = random_stage(spec, tensor=tensor, seed=3, scale=2.0)
    rows = buckets.decode_rows[-1]
    schedule = Schedule(
        policy=policy,  # type: ignore[arg-type]
        encode_batch=buckets.encode_rows[-1],
        decode_iterations=iterations,
        decode_batch=rows,
        max_rows=rows,
        stages=(stage.stage,),
        micro_batch=rows,
        encode_micro_batch=buckets.encode_rows[-1],
        token_budget=16 if policy == "chunked" else 0,
    )
    plan = Plan("test", "float32", "float32", buckets.cache_tokens[-1], buckets.cache_tokens[-1] - 8, schedule, buckets)
    engine = Engine(stage, plan)
    engine.warm_up()
    return engine


@pytest.fixture(scope="module")
def loop() -> PlainLoop:
    return PlainLoop(random_stage(spec_of("llama"), seed=3, scale=2.0), CACHE_TOKENS)


@pytest.fixture(scope="module")
def engine() -> Engine:
    """Chunked, since that policy's programs are a superset of all others'."""
    return engine_of(spec_of("llama"), "chunked", Buckets((3,), (8, 16), (3, 6), (24, CACHE_TOKENS)))


@dataclasses.dataclass
class Ask:
    """A request on its way through an executor: `resumed` tokens of its answer are known from an earlier life."""

    number: int
    prompt: tuple[int, ...]
    sampling: Sampling
    expected: list[int]
    sure: int
    resumed: int = 0
    encoded: int = 0
    slot: int = NO_SLOT
    got: list[int] = dataclasses.field(default_factory=list)

    @property
    def source(self) -> tuple[int, ...]:
        return (*self.prompt, *self.expected[: self.resumed])

    @property
    def position(self) -> int:
        """Of the newest token."""
        return len(self.source) + len(self.got) - 1

    def check(self) -> bool:
        """The answer is right as far as it is beyond doubt; returns whether a doubt cut the comparison."""
        wanted = self.expected[self.resumed :]
        if self.sure >= len(self.expected):
            assert self.got == wanted, self
        sure = max(0, self.sure - self.resumed)
        assert self.got[:sure] == wanted[:sure], self
        return self.sure < len(self.expected)


def asks(loop: PlainLoop, rng: random.Random, count: int, longest: int) -> list[Ask]:
    found = []
    for number in range(count):
        prompt = tuple(rng.randrange(53) for _ in range(rng.randint(1, longest)))
        sampling = Sampling(
            max_tokens=rng.randint(1, 14),
            temperature=rng.choice([0.0, 0.0, 0.7, 1.5]),
            top_k=rng.choice([0, 0, 5]),
            top_p=rng.choice([1.0, 1.0, 0.8]),
            min_p=rng.choice([0.0, 0.0, 0.05]),
            presence_penalty=rng.choice([0.0, 0.0, 0.8]),
            frequency_penalty=rng.choice([0.0, 0.0, 0.5]),
            repetition_penalty=rng.choice([1.0, 1.0, 1.3]),
            seed=rng.getrandbits(63),
            stop_ids=tuple(rng.sample(range(53), rng.choice([0, 0, 4]))),
            min_tokens=rng.choice([0, 3]),
            logit_bias=((7, 2.0),) if rng.random() < 0.2 else (),
            logprobs=rng.choice([None, None, 2]),
        )
        expected, sure = loop.answer(prompt, sampling)
        # A resumed answer continues behind tokens that are beyond doubt.
        resumed = rng.choice([0, 0, min(len(expected), sure, 4) // 2])
        found.append(Ask(number, prompt, sampling, expected, sure, resumed))
    return found


class Driver:
    """Sends random phases that keep the executor's rules, and hands each request its tokens."""

    def __init__(self, executor: LocalExecutor, rng: random.Random, waiting: list[Ask]) -> None:
        self.executor, self.rng = executor, rng
        self.plan: Plan = executor.engine.plan
        self.waiting = list(waiting)
        self.live: dict[int, Ask] = {}
        self.finished: list[int] = []

    def run(self) -> None:
        phase = 0
        while self.waiting or self.live or self.finished:
            phase += 1
            assert phase < 1000, "the driver stands still"
            self.phase(phase)

    def phase(self, number: int) -> None:
        release, self.finished = tuple(self.finished), []
        rows = self.plan.schedule.max_rows
        moves = []
        free = [slot for slot in range(rows) if slot not in self.live]
        self.rng.shuffle(free)
        for source in self.rng.sample(sorted(self.live), min(len(self.live), len(free), self.rng.choice([0, 0, 1, 2]))):
            moves.append((source, free.pop()))
            self.live[moves[-1][1]] = self.live.pop(source)
        calls = self.encodes(free)
        decode = None
        if self.live or not calls:
            low = round_up(max(self.live, default=0) + 1, self.plan.buckets.decode_rows)
            compiled = [key[1:] for key in self.executor.engine._run if key[0] == "decode" and key[1] >= low]
            decode = DecodeCall(self.rng.randint(1, self.plan.schedule.decode_iterations), *self.rng.choice(compiled))
        pending = self.executor.dispatch(PhaseCommand(number, (), release, tuple(moves), calls, decode))
        for call, result in zip(calls, pending.encoded(), strict=True):
            assert (result.logprobs is not None) == any(row.sampling.logprobs is not None for row in call.rows)
            for index, row in enumerate(call.rows):
                if row.slot != NO_SLOT:
                    ask = self.live[row.slot]
                    ask.got.append(int(result.tokens[index, 0]))
                    assert bool(result.done[index]) == self.ended(ask)
        block = pending.decoded()
        if block is not None:
            for slot, ask in self.live.items():
                if slot < block.tokens.shape[1]:
                    valid = block.counts[:, slot].astype(bool)
                    assert (np.sort(block.counts[:, slot])[::-1] == block.counts[:, slot]).all()
                    ask.got += block.tokens[valid, slot, 0].tolist()
                    assert bool(block.done[slot]) == self.ended(ask)
        for slot in [slot for slot, ask in self.live.items() if self.ended(ask)]:
            del self.live[slot]
            self.finished.append(slot)

    def encodes(self, free: list[int]) -> tuple[EncodeCall, ...]:
        """Whole prompts in one batch, and now and then a chunk of one prompt."""
        buckets, calls = self.plan.buckets, []
        batch = []
        for ask in list(self.waiting[:6]):
            left = ask.source[ask.encoded :]
            whole = ask.encoded == 0 and len(left) <= buckets.encode_tokens[-1] and self.rng.random() < 0.8
            if whole and free and len(batch) < buckets.encode_rows[-1]:
                batch.append(self.advance(ask, len(left), free))
            elif not whole and (free or len(left) > 1):
                size = self.rng.randint(1, min(len(left) - (0 if free else 1), buckets.encode_tokens[-1]))
                context = round_up(len(ask.source), buckets.cache_tokens)
                row = self.advance(ask, size, free)
                calls.append(EncodeCall((row,), 1, round_up(size, buckets.encode_tokens), context))
        if batch:
            longest = max(len(row.token_ids) for row in batch)
            calls.append(EncodeCall(tuple(batch), buckets.encode_rows[-1], round_up(longest, buckets.encode_tokens)))
        return tuple(calls)

    def advance(self, ask: Ask, size: int, free: list[int]) -> EncodeRow:
        start, ask.encoded = ask.encoded, ask.encoded + size
        slot = NO_SLOT
        if ask.encoded == len(ask.source):
            slot = free.pop()
            self.live[slot] = ask
            self.waiting.remove(ask)
        tokens = ask.source[start : ask.encoded]
        return EncodeRow(ask.number, tokens, start, slot, ask.sampling, ask.resumed)

    def ended(self, ask: Ask) -> bool:
        total = ask.resumed + len(ask.got)
        stopped = bool(ask.got) and ask.got[-1] in ask.sampling.stop_ids
        return stopped or total >= ask.sampling.max_tokens or ask.position >= self.plan.cache_tokens


@pytest.mark.parametrize("seed", range(3))
def test_random_phases_give_the_plain_loops_tokens(engine: Engine, loop: PlainLoop, seed: int) -> None:
    rng = random.Random(seed)
    requests = asks(loop, rng, 25, 40)
    with forbid_compilations():
        executor = LocalExecutor(engine)
        Driver(executor, rng, requests).run()
    assert executor.live_bytes() == 0
    assert sum(ask.check() for ask in requests) <= 2


@pytest.mark.parametrize("tensor", [2, pytest.param(4, marks=pytest.mark.full), 8])
def test_devices_do_not_change_tokens(loop: PlainLoop, tensor: int) -> None:
    engine = engine_of(spec_of("llama"), "rra", Buckets((3,), (16,), (4,), (CACHE_TOKENS,)), tensor)
    rng = random.Random(tensor)
    requests = asks(loop, rng, 12, 12)
    for ask in requests:
        ask.resumed = 0
    executor = LocalExecutor(engine)
    waiting = list(requests)
    while waiting:
        some = [waiting.pop() for _ in range(min(3, len(waiting)))]
        rows = tuple(EncodeRow(ask.number, ask.source, 0, slot, ask.sampling) for slot, ask in enumerate(some))
        decode = DecodeCall(7, 4, CACHE_TOKENS)
        pending = [executor.dispatch(PhaseCommand(0, encode=(EncodeCall(rows, 3, 16),), decode=decode))]
        pending.append(executor.dispatch(PhaseCommand(1, decode=decode)))
        executor.dispatch(PhaseCommand(2, release=tuple(range(len(some)))))
        (first,) = pending[0].encoded()
        for slot, ask in enumerate(some):
            ask.got.append(int(first.tokens[slot, 0]))
            for part in pending:
                block = part.decoded()
                assert block is not None
                ask.got += block.tokens[block.counts[:, slot] == 1, slot, 0].tolist()
    assert sum(ask.check() for ask in requests) <= 1
    assert executor.live_bytes() == 0


@pytest.mark.parametrize("family", ["gpt2", "mistral"])
def test_other_families_decode_like_full_recomputation(family: str) -> None:
    spec = spec_of(family)
    engine = engine_of(spec, "rra", Buckets((2,), (16,), (2,), (CACHE_TOKENS,)), iterations=24)
    loop = PlainLoop(random_stage(spec, seed=3, scale=2.0), CACHE_TOKENS)
    executor = LocalExecutor(engine)
    prompts = [tuple(range(3, 14)), (5, 40, 2)]
    sampling = Sampling(max_tokens=25)
    rows = tuple(EncodeRow(slot, prompt, 0, slot, sampling) for slot, prompt in enumerate(prompts))
    command = PhaseCommand(0, encode=(EncodeCall(rows, 2, 16),), decode=DecodeCall(24, 2, CACHE_TOKENS))
    pending = executor.dispatch(command)
    (first,), block = pending.encoded(), pending.decoded()
    assert block is not None
    for slot, prompt in enumerate(prompts):
        expected, sure = loop.answer(prompt, sampling)
        got = [int(first.tokens[slot, 0]), *block.tokens[:, slot, 0].tolist()]
        assert got[:sure] == expected[:sure]
        assert sure > 5


def test_the_cache_is_donated_and_changed_in_place(engine: Engine) -> None:
    spec, stage, plan = engine.stage.spec, engine.stage.stage, engine.plan
    rows = plan.schedule.max_rows
    cache = rows * cache_row_bytes(spec, stage, plan.cache_tokens, plan.cache_dtype)
    for program in engine.programs:
        if program.name.startswith(("decode", "insert", "move")):
            # Layers and counts.
            assert program.aliased_bytes == cache + rows * spec.vocab_size * 5, program.name
    (whole,) = [p for p in engine.programs if p.name == f"decode {rows} rows x {plan.cache_tokens} tokens"]
    assert whole.temporary_bytes < cache, "decoding over the whole cache must not copy it"
    state = engine.initial_state()
    after, _ = engine.decode(state, 1, rows, plan.cache_tokens)
    jax.block_until_ready(after)
    assert all(array.is_deleted() for array in jax.tree.leaves(state.cache))


def test_live_bytes_count_slots_and_unfinished_prompts(engine: Engine) -> None:
    spec, stage, plan = engine.stage.spec, engine.stage.stage, engine.plan
    executor = LocalExecutor(engine)
    sampling = Sampling(max_tokens=5)
    whole = EncodeCall((EncodeRow(0, (1, 2, 3), 0, 4, sampling),), 3, 8)
    chunk = EncodeCall((EncodeRow(1, tuple(range(8)), 0, NO_SLOT, sampling),), 1, 8, 24)
    executor.dispatch(PhaseCommand(0, encode=(whole, chunk))).encoded()
    row = cache_row_bytes(spec, stage, plan.cache_tokens, plan.cache_dtype)
    assert executor.live_bytes() == row + cache_row_bytes(spec, stage, 24, plan.cache_dtype)
    executor.dispatch(PhaseCommand(1, drop=(1,)))
    assert executor.live_bytes() == row
    executor.dispatch(PhaseCommand(2, moves=((4, 0),)))
    assert executor.live_bytes() == row
    executor.dispatch(PhaseCommand(3, release=(0,)))
    assert executor.live_bytes() == 0


def test_a_released_row_decodes_no_more(engine: Engine) -> None:
    executor = LocalExecutor(engine)
    row = EncodeRow(0, (1, 2, 3), 0, 2, Sampling(max_tokens=40, temperature=1.0))
    executor.dispatch(PhaseCommand(0, encode=(EncodeCall((row,), 3, 8),)))
    block = executor.dispatch(PhaseCommand(1, decode=DecodeCall(3, 3, 24))).decoded()
    assert block is not None
    assert block.counts.sum() == 3
    assert not block.done[2]
    block = executor.dispatch(PhaseCommand(2, release=(2,), decode=DecodeCall(3, 3, 24))).decoded()
    assert block is not None
    assert block.counts.sum() == 0
    assert block.done.all()


def test_a_failing_program_is_an_engine_error_and_reset_goes_on(engine: Engine, loop: PlainLoop) -> None:
    executor = LocalExecutor(engine)
    sampling = Sampling(max_tokens=5)
    call = EncodeCall((EncodeRow(0, (1, 2, 3), 0, 0, sampling),), 3, 8)
    key = ("encode", 3, 8)
    sound = engine._run[key]

    def fails(*arguments: object) -> None:
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 123 bytes")

    engine._run[key] = Program("failing", fails, 0.0, 0, 0)  # type: ignore[arg-type]
    try:
        with pytest.raises(EngineError, match=r"out of memory.*--max_rows.*--memory_fraction"):
            executor.dispatch(PhaseCommand(0, encode=(call,)))
    finally:
        engine._run[key] = sound
    executor.reset()
    assert executor.live_bytes() == 0
    pending = executor.dispatch(PhaseCommand(1, encode=(call,), decode=DecodeCall(4, 3, 24)))
    (first,), block = pending.encoded(), pending.decoded()
    assert block is not None
    assert [int(first.tokens[0, 0]), *block.tokens[:, 0, 0].tolist()] == loop.answer((1, 2, 3), sampling)[0]


def test_a_shape_without_program_is_refused_by_name(engine: Engine) -> None:
    executor = LocalExecutor(engine)
    with pytest.raises(EngineError, match="no program decode 5 24"):
        executor.dispatch(PhaseCommand(0, decode=DecodeCall(1, 5, 24)))
