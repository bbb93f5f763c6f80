"""What a plan predicts for phases that ran: the event simulation's times, read beside the measured ones."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest

from exegpt_jax.engine.api import Sampling
from exegpt_jax.runner import batch
from exegpt_jax.runner.loop import Runner
from exegpt_jax.runner.request import Request
from exegpt_jax.testing.fake import FakeExecutor
from exegpt_jax.testing.hidden_lengths import HiddenLengths
from solver.facts.workload import merge
from solver.plan.plan import Plan, make_plan
from solver.plan.prediction import StageMemory
from solver.plan.schedule import Schedule, StageSpec
from solver.plan.timeline import Timeline, TimelineEntry
from solver.simulate.events.arrivals import Demand
from solver.simulate.events.lengths import BatchSource
from solver.simulate.events.simulation import simulate
from solver.simulate.from_plan import machines_of
from solver.simulate.points import Conditions
from solver.simulate.predicted import PhasePredictor
from tests.solver.planner_cases import random_profile, small_cluster, small_spec

MOST_OUTPUT = 30
ONE = (StageSpec("both", (0, 4), (0,), 1),)
TWO = (StageSpec("both", (0, 1), (0, 1), 2), StageSpec("both", (1, 4), (2,), 1))
NAMES = {"model": "toy", "dtype": "float32", "cache_dtype": "float32", "cache_tokens": 400, "max_prompt_tokens": 200}


def plan_of(policy: str, stages: tuple[StageSpec, ...] = ONE) -> Plan:
    schedule = Schedule(policy, 5, 4, 15, 20, stages, 20, 5)  # type: ignore[arg-type]
    return make_plan(small_spec(), schedule, **NAMES)  # type: ignore[arg-type]


def ran(plan: Plan, demand: Demand, predictor: PhasePredictor) -> Timeline:
    """The Runner's timeline, all of the demand there from the start."""
    hidden = HiddenLengths(FakeExecutor(plan, 97), lambda row: int(demand.output_tokens[row.request]))
    runner = Runner(plan, hidden, lambda events: None, predictor=predictor)
    for number, tokens in enumerate(demand.input_tokens):
        runner.submit(Request(f"r{number}", (1,) * int(tokens), Sampling(max_tokens=MOST_OUTPUT)))
    while runner.run_phase():
        pass
    return runner.timeline


@pytest.mark.parametrize("policy", ["rra", "static", "iteration"])
def test_phases_take_what_the_event_simulation_says(policy: str, monkeypatch: pytest.MonkeyPatch) -> None:
    # To the simulation, re-packing rows costs nothing.
    monkeypatch.setattr(batch, "pays", lambda choice, plan, predictor: True)
    rng = np.random.default_rng(3)
    spec, cluster, plan = small_spec(), small_cluster(), plan_of(policy)
    profile = random_profile(rng, spec, padded=True)
    outputs = rng.integers(1, MOST_OUTPUT + 1, 100)
    outputs[0] = MOST_OUTPUT
    demand = Demand(rng.integers(1, 200, 100), outputs, np.zeros(100))
    workload = merge("toy", "test", demand.input_tokens, demand.output_tokens, np.ones(100))
    found = ran(plan, demand, PhasePredictor(plan, spec, (profile,), cluster))
    simulated = simulate(
        plan.schedule,
        machines_of(plan, spec, cluster, (profile,), workload),
        demand,
        Conditions(cache_tokens=400),
        source=BatchSource({"x": profile}, spec, cluster, plan.buckets),
    )
    ends = {entry.phase: entry.ready_s for entry in simulated.timeline}
    expected = np.diff([0.0, *ends.values()])
    np.testing.assert_allclose([phase.predicted_s for phase in found.phases()], expected, rtol=1e-9)
    by_phase = dict.fromkeys(ends, 0.0)
    for entry in found:
        assert entry.predicted_s is not None
        by_phase[entry.phase] += entry.predicted_s
    np.testing.assert_allclose(list(by_phase.values()), expected, rtol=1e-9)


def test_stages_overlap_by_micro_batches() -> None:
    rng = np.random.default_rng(7)
    spec, plan = small_spec(), plan_of("rra", TWO)
    profile = dataclasses.replace(random_profile(rng, spec, tensors=(1, 2), padded=True), phase_s=0.5)
    predictor = PhasePredictor(plan, spec, (profile,), small_cluster())
    encodes = [TimelineEntry(0, "encode", j, 0, 1, 4, 64, 0, 4, t, ((4, t),)) for t in (16, 64) for j in (0, 1)]
    decodes = [
        TimelineEntry(0, "decode", j, 1, 2, r, 3 * r, 3, r, 64, micro_batch=m)
        for m, r in enumerate((8, 16))
        for j in (0, 1)
    ]
    free = [0.0, 0.0]

    def through(times: list[float], at_s: float) -> float:
        for stage, spent_s in enumerate(times):
            free[stage] = at_s = max(at_s, free[stage]) + spent_s
        return at_s

    def times(entries: list[TimelineEntry], part: int) -> list[float]:
        found = [predictor.entry_s(entry) for entry in entries[2 * part : 2 * part + 2]]
        assert None not in found
        return found  # type: ignore[return-value]

    encoded_s = max(through(times(encodes, part), 0.0) for part in (0, 1))
    ready_s = [encoded_s + 0.5] * 2
    free[:] = [encoded_s] * 2
    iterations = [
        [(spent_s - 0.5 * (stage == p == 0)) / 3 for stage, spent_s in enumerate(times(decodes, p))] for p in (0, 1)
    ]
    back_s = float(small_cluster().island.transfer_s(4))
    for _ in range(3):
        for part in (0, 1):
            ready_s[part] = through(iterations[part], ready_s[part]) + back_s
    assert predictor.phase_s([*encodes, *decodes]) == pytest.approx(max(ready_s) - back_s)


def test_a_timeline_tells_predictions_to_its_readers() -> None:
    class Doubles:
        def entry_s(self, entry: TimelineEntry) -> float | None:
            return 2 * entry.tokens if entry.kind == "encode" else None

        def phase_s(self, entries: list[TimelineEntry]) -> float | None:
            return float(sum(entry.tokens for entry in entries))

    timeline = Timeline(predictor=Doubles())  # type: ignore[arg-type]
    timeline.add(TimelineEntry(0, "encode", 0, 0.0, 1.0, rows=1, tokens=3))
    timeline.add(TimelineEntry(0, "decode", 0, 0.0, 2.0, rows=1, tokens=1, iterations=1))
    timeline.close(0, 5.0)
    timeline.add(TimelineEntry(1, "encode", 0, 5.0, 6.0, rows=1, tokens=9))
    assert [entry.predicted_s for entry in timeline] == [6.0, None, 18.0]
    (phase,) = timeline.phases()
    assert (phase.measured_s, phase.predicted_s, phase.error) == (5.0, 4.0, pytest.approx(-0.2))
    spans = [event for event in json.loads(timeline.to_chrome_trace())["traceEvents"] if event["ph"] == "X"]
    assert [span["args"]["predicted_s"] for span in spans] == [6.0, None, 18.0]


def test_nothing_is_predicted_without_shapes() -> None:
    spec = small_spec()
    profile = random_profile(np.random.default_rng(0), spec, padded=True)
    predictor = PhasePredictor(plan_of("rra"), spec, (profile,), small_cluster())
    shapeless = TimelineEntry(0, "decode", 0, 0.0, 2.0, rows=1, tokens=1, iterations=1)
    assert predictor.entry_s(shapeless) is None
    assert predictor.phase_s([shapeless]) is None
    assert predictor.phase_s([]) is None


def test_devices_links_and_kinds_must_be_there() -> None:
    spec, plan = small_spec(), plan_of("rra", TWO)
    profile = random_profile(np.random.default_rng(0), spec, tensors=(1, 2), padded=True)
    with pytest.raises(ValueError, match="device 2 is not in cluster"):
        PhasePredictor(plan, spec, (profile,), small_cluster(per_island=2))
    with pytest.raises(ValueError, match="cluster: needed for the links"):
        PhasePredictor(plan, spec, (profile,), None)
    held = (StageMemory(0, "y", 1, 1, 1, 1, 10, 9), StageMemory(1, "x", 1, 1, 1, 1, 10, 9))
    with pytest.raises(ValueError, match="none for device kind y"):
        PhasePredictor(dataclasses.replace(plan, memory=held), spec, (profile,), small_cluster())
