"""The Runner's WAA loop against the event simulation of it: the same costs, the same requests, on one virtual clock."""

from __future__ import annotations

import random

import numpy as np
import pytest

from exegpt_jax.engine.api import DecodeResult, EncodeResult, PhaseCommand, Sampling
from exegpt_jax.runner.events import Event, Finished
from exegpt_jax.runner.loop import Runner
from exegpt_jax.runner.request import Request
from exegpt_jax.testing.fake import FakeExecutor
from exegpt_jax.testing.hidden_lengths import HiddenLengths
from solver.plan.plan import Plan
from solver.plan.timeline import Timeline
from solver.simulate.events.apart import ApartLoop
from solver.simulate.events.arrivals import Demand
from solver.simulate.events.costs import DecodePhase
from solver.simulate.events.queue import Room
from tests.exegpt_jax.runner_bench import VOCAB
from tests.exegpt_jax.test_runner_apart import apart_plan

MOVE_S = 0.0005
CACHE_TOKENS = 128


def encode_s(rows: int) -> float:
    return 0.010 + 0.001 * rows


def decode_s(rows: int) -> float:
    return 0.0012 + 0.00002 * rows


class EncodeCosts:
    """`solver.simulate.events.costs.Costs` of one stage."""

    stages, phase_s, return_s, most_decode = 1, 0.0, 0.0, 0

    def encode(self, inputs: np.ndarray, parts: int) -> np.ndarray:
        return np.array([[encode_s(len(inputs))]])

    def decode(self, phase: DecodePhase) -> np.ndarray:
        return np.array([[[decode_s(int(rows))]] for rows in phase.rows])

    def moved_tokens(self, inputs: np.ndarray) -> int:
        return int(inputs.sum())


class OnClock(FakeExecutor):
    """Computes at once, and says when devices would have: each side works on one thing at a time."""

    def __init__(self, plan: Plan) -> None:
        super().__init__(plan, VOCAB)
        self.now_s = self._free_s = 0.0

    def dispatch(self, command: PhaseCommand) -> Under:  # type: ignore[override]
        phase = super().dispatch(command)
        rows = sum(len(call.rows) for call in command.encode)
        if rows:
            self._free_s = max(self.now_s, self._free_s) + encode_s(rows)
        decoded = phase.decode_result
        spent_s = 0.0 if decoded is None else decode_s(int(decoded.counts.sum()))
        return Under(self, phase.encode_results, decoded, self._free_s, spent_s)


class Under:
    """A phase under way on the clock."""

    def __init__(
        self,
        devices: OnClock,
        first: tuple[EncodeResult, ...],
        block: DecodeResult | None,
        ready_s: float,
        spent_s: float,
    ) -> None:
        self._devices, self._first, self._block = devices, first, block
        self._ready_s, self._spent_s = ready_s, spent_s

    def is_encoded(self) -> bool:
        return self._devices.now_s >= self._ready_s

    def has_arrived(self) -> bool:
        return self._devices.now_s >= self._ready_s + MOVE_S

    def arrive(self) -> None:
        self._devices.now_s = max(self._devices.now_s, self._ready_s + MOVE_S)

    def encoded(self) -> tuple[EncodeResult, ...]:
        self._devices.now_s = max(self._devices.now_s, self._ready_s)
        return self._first

    def decoded(self) -> DecodeResult | None:
        self._devices.now_s += self._spent_s
        return self._block


@pytest.mark.parametrize(
    ("encode_batch", "iterations", "decode_batch", "max_rows"),
    [(8, 12, 13, 60), (2, 9, 4, 40), (16, 16, 19, 22)],  # the last: rows are short
)
def test_the_loop_is_the_simulation(encode_batch: int, iterations: int, decode_batch: int, max_rows: int) -> None:
    rng = random.Random(1)
    count = 1500
    prompts = [rng.randint(1, 40) for _ in range(count)]
    outputs = [rng.randint(1, 40) for _ in range(count)]
    plan = apart_plan(
        encode_batch=encode_batch,
        iterations=iterations,
        rows=max_rows,
        decode_batch=decode_batch,
        cache_tokens=CACHE_TOKENS,
    )
    demand = Demand(np.array(prompts), np.array(outputs))
    costs, room = EncodeCosts(), Room(max_rows)
    move_s = MOVE_S / (encode_batch * np.mean(prompts))
    loop = ApartLoop(plan.schedule, costs, costs, demand, room, move_s, "encode", True, Timeline())
    simulated = loop.run()

    devices, ends = OnClock(plan), []

    def hear(events: list[Event]) -> None:
        ends.extend(event for event in events if isinstance(event, Finished))

    hidden = HiddenLengths(devices, lambda row: outputs[row.request])
    runner = Runner(plan, hidden, hear, clock=lambda: devices.now_s)
    for number, length in enumerate(prompts):
        runner.submit(Request(f"r{number}", (1,) * length, Sampling(max_tokens=60)))
    while runner.run_phase():
        pass
    assert len(ends) == count
    kept = [end for end in ends if 200 <= int(end.id[1:]) < count - 300]
    starts_s = sorted(end.times.encode_start_s for end in kept)
    rate = len(kept) / (starts_s[-1] - starts_s[0])
    rows = [
        entry.rows for entry in runner.timeline if entry.kind == "decode" and starts_s[0] < entry.ready_s < starts_s[-1]
    ]
    latency_s = np.array([end.times.latency_s for end in kept])
    assert rate == pytest.approx(simulated.throughput_rps, rel=0.04)
    assert rate == pytest.approx(encode_batch / encode_s(encode_batch), rel=0.04)
    assert np.mean(rows) == pytest.approx(simulated.residents_mean, rel=0.05)
    expected_s = simulated.latencies_s("encode")
    for percentile in (50, 99):
        assert np.percentile(latency_s, percentile) == pytest.approx(np.percentile(expected_s, percentile), rel=0.05)
