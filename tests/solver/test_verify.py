"""The check of a plan: plain loops agree with the closed form to the last digits, and every edited claim is caught."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable

import numpy as np
import pytest

from solver.facts.workload import Workload
from solver.plan.bounds import Bounds
from solver.plan.certificate import Certificate
from solver.plan.plan import Plan, make_plan
from solver.plan.schedule import Schedule, StageSpec
from solver.simulate.from_plan import machines_of
from solver.simulate.lengths import lengths_of
from solver.simulate.points import Conditions
from solver.simulate.rra import evaluate_rra
from solver.verify import checks
from solver.verify.checks import Check
from solver.verify.residents import rows_needed, share_above
from solver.verify.rra import Answers, Asked, Candidate, Line, derive
from solver.verify.scan import scan
from solver.verify.stage_times import setting_of
from tests.conftest import FULL
from tests.solver.plan_cases import Case, solved
from tests.solver.planner_cases import random_profile, random_workload, small_cluster, small_spec

PLACEMENTS = (
    (StageSpec("both", (0, 4), (0,), 1),),
    (StageSpec("both", (0, 1), (0, 1), 2), StageSpec("both", (1, 4), (2,), 1)),
    (StageSpec("both", (0, 2), (0,), 1), StageSpec("both", (2, 3), (1,), 1), StageSpec("both", (3, 4), (4, 5), 2)),
    tuple(StageSpec("both", (i, i + 1), (2 * i,), 1) for i in range(4)),
)


@pytest.mark.parametrize("seed", range(400 if FULL else 60))
def test_plain_loops_and_the_closed_form_agree(seed: int) -> None:
    rng = np.random.default_rng(seed)
    spec = small_spec(4, window=20 if seed % 3 == 0 else None)
    cluster = small_cluster(hosts=2, islands=2, per_island=2)
    profile = random_profile(rng, spec, ragged=seed % 2 == 1, tensors=(1, 2))
    workload = random_workload(rng)
    lengths = lengths_of(workload, "encode" if seed % 5 else "decode")
    stages = PLACEMENTS[seed % len(PLACEMENTS)]
    batch, iterations = int(rng.integers(1, 30)), int(rng.integers(1, 25))
    parts = int(rng.integers(1, min(batch, 3) + 1)), int(rng.integers(1, 4))
    compaction = ("phase", "iteration")[seed % 2]
    delivery = ("iteration", "phase", "phase+1")[seed % 3]
    schedule = Schedule("rra", batch, iterations, 400, 900, stages, 400, batch)
    plan = make_plan(
        spec, schedule, model="x", dtype="float32", cache_dtype="float32", cache_tokens=400, max_prompt_tokens=250
    )
    pipeline = machines_of(plan, spec, cluster, [profile], workload).decode
    conditions = Conditions(95, tpot_percentile=90, compaction=compaction, delivery=delivery)  # type: ignore[arg-type]
    points = evaluate_rra(pipeline, lengths, conditions, np.array([batch]), np.array([iterations]), *parts)
    found = derive(
        Line(setting_of(spec, cluster, [profile], workload), stages),
        Answers(workload, lengths.first_token),
        Candidate(batch, iterations, *parts),
        Asked(95, 99, 90, compaction, delivery),
        None,
    )
    for name in (
        "throughput_rps",
        "latency_s",
        "ttft_s",
        "tpot_s",
        "period_s",
        "encode_s",
        "decode_phase_s",
        "decode_batch",
    ):
        assert getattr(found, name) == pytest.approx(float(getattr(points, name)[0]), rel=1e-9), name


def test_rows_above_a_limit_as_often_as_drawn() -> None:
    rng = np.random.default_rng(3)
    workload = random_workload(rng)
    batch, iterations = 9, 4
    answers = Answers(workload, "encode")
    periods = -(-(workload.output_tokens - 1) // iterations)
    rounds = 20_000
    drawn = rng.choice(periods, (rounds, int(periods.max()), batch), p=workload.probability)
    rows = (drawn > np.arange(periods.max())[None, :, None]).sum(axis=(1, 2))
    assert abs(rows_needed(answers, batch, iterations, 0.1) - np.percentile(rows, 90)) <= 1
    for limit in (int(np.percentile(rows, 50)), int(np.percentile(rows, 90)), int(np.percentile(rows, 99))):
        seen = float((rows > limit).mean())
        assert share_above(answers, batch, iterations, limit) == pytest.approx(seen, abs=4 * math.sqrt(seen / rounds))


def verified(case: Case, plan: Plan | None = None) -> list[Check]:
    """Every check but the scan."""
    plan = plan or case.plan
    found = checks.check_stages(plan, case.spec, case.cluster)
    if not all(check.holds for check in found):
        return found
    setting = setting_of(case.spec, case.cluster, [case.profile], case.workload)
    return [
        *found,
        *checks.check_memory(plan, case.spec, case.cluster),
        *checks.check_certificate(plan),
        *checks.check_prediction(plan, case.spec, setting, case.workload),
    ]


def failures(case: Case, plan: Plan | None = None) -> set[str]:
    return {check.field for check in verified(case, plan) if not check.holds}


@pytest.mark.parametrize("stages", [1, 2])
@pytest.mark.parametrize(("factor", "ragged"), [(None, False), (1.5, False), (3.0, True)])
def test_the_best_plan_holds(stages: int, factor: float | None, ragged: bool) -> None:
    assert failures(solved(stages + 10 * ragged, stages=stages, bound_factor=factor, ragged=ragged)) == set()


def test_a_plan_for_compiled_shapes_holds_within_what_drawing_allows() -> None:
    assert failures(solved(2, padded=True, bound_factor=2.0, most_batch=10)) == set()


def _schedule(**changes: object) -> Callable[[Plan], Plan]:
    def edit(plan: Plan) -> Plan:
        return dataclasses.replace(plan, schedule=dataclasses.replace(plan.schedule, **changes))

    return edit


def _prediction(name: str, factor: float) -> Callable[[Plan], Plan]:
    def edit(plan: Plan) -> Plan:
        assert plan.prediction is not None
        changed = {name: getattr(plan.prediction, name) * factor}
        return dataclasses.replace(plan, prediction=dataclasses.replace(plan.prediction, **changed))

    return edit


def _memory(name: str, more: int) -> Callable[[Plan], Plan]:
    def edit(plan: Plan) -> Plan:
        changed = {name: getattr(plan.memory[0], name) + more}
        return dataclasses.replace(plan, memory=(dataclasses.replace(plan.memory[0], **changed), *plan.memory[1:]))

    return edit


def _certificate(plan: Plan) -> Plan:
    assert plan.certificate is not None
    rate = plan.certificate.objective_rps * 1.01
    return dataclasses.replace(plan, certificate=Certificate.of(rate, rate, 0.0, 9, 9, "node-limited"))


def _tighter(plan: Plan) -> Plan:
    assert plan.prediction is not None
    return dataclasses.replace(plan, bounds=Bounds(latency_s=plan.prediction.latency_s * 0.99))


EDITS: dict[str, tuple[Callable[[Plan], Plan], str]] = {
    "throughput": (_prediction("throughput_rps", 1.0001), "prediction.throughput_rps"),
    "latency": (_prediction("latency_s", 0.9999), "prediction.latency_s"),
    "time to first token": (_prediction("ttft_s", 1.001), "prediction.ttft_s"),
    "time per token": (_prediction("tpot_s", 1.001), "prediction.tpot_s"),
    "period": (_prediction("period_s", 0.999), "prediction.period_s"),
    "rows": (_prediction("decode_batch", 1.001), "prediction.decode_batch"),
    "objective": (_certificate, "certificate.objective_rps"),
    "bound": (_tighter, "bounds.latency_s"),
    "weights": (_memory("weights_bytes", -10_000), "memory[0].weights_bytes"),
    "cache": (_memory("cache_bytes", -100_000), "memory[0].cache_bytes"),
    "usable": (_memory("capacity_bytes", 2**30), "memory[0].capacity_bytes"),
    "batch": (_schedule(encode_batch=1, encode_micro_batch=1), "prediction.throughput_rps"),
    "iterations": (_schedule(decode_iterations=33), "prediction.latency_s"),
    "layers": (_schedule(stages=(StageSpec("both", (0, 3), (0,), 1),)), "schedule.stages"),
    "device": (_schedule(stages=(StageSpec("both", (0, 4), (7,), 1),)), "schedule.stages.devices"),
    "copies": (lambda plan: dataclasses.replace(plan, replicas=2), "schedule.stages.devices"),
    "no certificate": (lambda plan: dataclasses.replace(plan, certificate=None), "certificate"),
    "no memory": (lambda plan: dataclasses.replace(plan, memory=()), "memory"),
    "runner-up": (
        lambda plan: dataclasses.replace(
            plan, runners_up=(dataclasses.replace(plan.runners_up[0], throughput_rps=1e9),)
        ),
        "runners_up[0].throughput_rps",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", EDITS)
def test_an_edited_plan_is_caught(name: str) -> None:
    case = solved(1, bound_factor=2.0)
    edit, field = EDITS[name]
    assert field in failures(case, edit(case.plan))


def test_fewer_rows_than_residents_are_caught() -> None:
    case = solved(1, bound_factor=2.0)
    rows = case.plan.schedule.decode_batch
    buckets = dataclasses.replace(case.plan.buckets, decode_rows=(rows,))
    schedule = dataclasses.replace(case.plan.schedule, max_rows=rows)
    assert "schedule.max_rows" in failures(case, dataclasses.replace(case.plan, schedule=schedule, buckets=buckets))


@pytest.mark.parametrize("seed", range(4))
def test_the_scan_finds_nothing_above_the_best_and_much_above_a_poor_plan(seed: int) -> None:
    case = solved(seed, bound_factor=2.0, ragged=seed % 2 == 1)
    setting = setting_of(case.spec, case.cluster, [case.profile], case.workload)
    arguments = (case.spec, case.cluster, setting, case.workload, checks.asked_of(case.plan))
    assert case.plan.certificate is not None
    best = case.plan.certificate.best_bound_rps
    found = scan(case.plan, *arguments, most=150)
    assert 0.8 * best <= found.throughput_rps
    # The case's plans stop at a batch of 40; beyond it the scan may do better.
    if found.candidate is not None and found.candidate.encode_batch <= 40:
        assert found.throughput_rps <= best * (1 + 1e-9)
    poor = dataclasses.replace(case.plan.schedule, encode_batch=1, encode_micro_batch=1, decode_iterations=max(1, 40))
    assert scan(dataclasses.replace(case.plan, schedule=poor), *arguments, most=150).throughput_rps > 0.8 * best


def test_a_model_that_does_not_fit_is_not_scanned_as_if_it_did() -> None:
    case = solved(1, bound_factor=2.0)
    small = dataclasses.replace(case.cluster.kinds[0], memory_bytes=2**20)
    cluster = dataclasses.replace(case.cluster, kinds=(small,))
    setting = setting_of(case.spec, cluster, [case.profile], case.workload)
    found = scan(case.plan, case.spec, cluster, setting, case.workload, checks.asked_of(case.plan), most=20)
    assert found.throughput_rps == 0.0
    assert found.candidate is None


def test_the_folder_shares_nothing_with_search_and_simulation() -> None:
    import ast
    from pathlib import Path

    import solver.verify

    for path in Path(solver.verify.__path__[0]).glob("*.py"):
        tree = ast.parse(path.read_text())
        names = [node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
        assert not [name for name in names if name.startswith(("solver.search", "solver.simulate"))], path
        assert not [node for node in ast.walk(tree) if isinstance(node, ast.Import) and "solver" in node.names[0].name]


def test_answers_count_from_the_first_token() -> None:
    workload = Workload("w", "s", np.array([5, 7]), np.array([1, 3]), np.array([0.25, 0.75]))
    assert Answers(workload, "encode").share == {0: 0.25, 2: 0.75}
    assert Answers(workload, "decode").alive[1:4] == pytest.approx([1.0, 0.75, 0.75])


def test_the_scan_of_compiled_shapes_finds_about_the_best() -> None:
    case = solved(2, padded=True, bound_factor=2.0, most_batch=8)
    setting = setting_of(case.spec, case.cluster, [case.profile], case.workload)
    asked = checks.asked_of(case.plan)
    poor = dataclasses.replace(case.plan.schedule, encode_batch=1, encode_micro_batch=1)
    plan = dataclasses.replace(case.plan, schedule=poor)
    found = scan(plan, case.spec, case.cluster, setting, case.workload, asked, most=24)
    assert case.plan.certificate is not None
    assert found.throughput_rps > 0.5 * case.plan.certificate.best_bound_rps
