"""What a planned Plan carries beside its schedule: strict, consistent, and digests that see every change."""

from __future__ import annotations

import dataclasses
import json
import math

import numpy as np
import pytest

from solver.facts.workload import Workload
from solver.plan.bounds import Bounds
from solver.plan.certificate import Certificate, Margins, Neighbour, RunnerUp
from solver.plan.digests import content_digest
from solver.plan.inputs import Input, Inputs, ProfileInput
from solver.plan.plan import Plan, Prediction, from_json, make_plan
from solver.plan.prediction import StageMemory, StagePrediction
from tests.solver.test_plan import SPEC, plan_of


def full_plan() -> Plan:
    """A Plan with every field filled."""
    return dataclasses.replace(
        plan_of(),
        prediction=Prediction(1.5, 2.0, 0.25, 0.001, 3.0, 0.5, 1.5, 0.01, 2.0, 1.75, 20.5,
                              (StagePrediction(0.2, 0.001, 0.9),), "interpolated"),
        replicas=2,
        inputs=Inputs(Input("m", "0" * 64), Input("c", "1" * 64), 2, (ProfileInput("m", "2" * 64, "a"),),
                      Input("w", "3" * 64), "1"),
        bounds=Bounds(latency_s=2.5, ttft_s=1.0, tpot_percentile=90.0),
        memory=(StageMemory(0, "a", 10, 20, 3, 4, 100, 90),),
        certificate=Certificate.of(1.5, 1.51, 0.01, 7, 40, "node-limited"),
        runners_up=(RunnerUp("static", "slower", "reaches 1.2 requests a second", 1.2, 2.4, encode_batch=4),
                    RunnerUp("waa-c", "devices", "needs two devices")),
        margins=Margins(0.05, -0.3, 0.15, 22.4, 36.8, 1e-3,
                        (Neighbour(0.3, 5, 8, 1.2), Neighbour(0.5, None, None, None))),
    )  # fmt: skip


def test_a_full_plan_survives_its_file_byte_for_byte() -> None:
    plan = full_plan()
    again = from_json(plan.to_json())
    assert again == plan
    assert again.to_json() == plan.to_json()
    assert again.digest != plan_of().digest


def test_make_plan_leaves_out_what_flags_cannot_know() -> None:
    plan = make_plan(SPEC, plan_of().schedule, model="m", dtype="float32", cache_dtype="float32", cache_tokens=64,
                     max_prompt_tokens=32)  # fmt: skip
    assert (plan.inputs, plan.bounds, plan.memory, plan.certificate, plan.runners_up) == (None, None, (), None, ())


@pytest.mark.parametrize(
    ("path", "value", "complaint"),
    [
        (("replicas",), 0, "replicas: 0 is too small"),
        (("memory", 0, "cache_bytes"), 400, "stage 0 needs 417 bytes per device but may fill 90"),
        (("memory",), [], None),
        (("prediction", "stages"), [{"encode_s": 1, "decode_s": 1, "busy_share": 1}] * 2, "stages: 2 entries"),
        (("prediction", "worst_mark"), "guessed", "plan.prediction.worst_mark: 'guessed' is none of measured"),
        (("certificate", "gap"), 0.0, "gap: 0.0, but bound and objective give 0.00666667"),
        (("certificate", "best_bound_rps"), 1.4, "best_bound_rps: 1.4 is below objective_rps=1.5"),
        (("certificate", "objective_rps"), 0, "objective_rps: 0.0 is no throughput"),
        (("certificate", "ended"), "time-limited", "ended: 'time-limited' with gap="),
        (("bounds", "latency_s"), 0, "latency_bound_s: 0.0 is no bound"),
        (("bounds", "latency_s"), -1.5, "latency_bound_s: -1.5 is no bound"),
        (("bounds", "latency_percentile"), 101, "latency_percentile: 101.0 is out of range"),
        (("bounds", "bound_from"), "birth", "plan.bounds.bound_from: 'birth' is none of encode, arrival"),
        (("margins", "profile_delta"), 1.0, "profile_delta: 1.0 is out of range"),
        (("margins", "output_drift_low"), 0.1, "output_drift"),
        (("runners_up", 0, "policy"), "magic", r"plan.runners_up\[0\].policy: 'magic'"),
        (("inputs", "profiles", 0, "device_kind"), None, r"plan.inputs.profiles\[0\].device_kind: None is no str"),
    ],
)  # fmt: skip
def test_an_edited_field_is_one_line_that_names_it(path: tuple, value: object, complaint: str | None) -> None:
    data = json.loads(full_plan().to_json())
    inner = data
    for step in path[:-1]:
        inner = inner[step]
    inner[path[-1]] = value
    if complaint is None:
        from_json(json.dumps(data))
        return
    with pytest.raises(ValueError, match=complaint) as caught:
        from_json(json.dumps(data))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("value", [math.nan, math.inf, 0.0, -0.0, -1.0])
def test_no_bound_is_made_of_what_is_no_time(value: float) -> None:
    for field, flag in (("latency_s", "latency_bound_s"), ("ttft_s", "ttft_bound_s"), ("tpot_s", "tpot_bound_s")):
        with pytest.raises(ValueError, match=f"^{flag}: "):
            Bounds(**{field: value})


@pytest.mark.parametrize(
    ("bound", "allowed", "ended"), [(1.0, 0.0, "proven"), (1.04, 0.05, "proven"), (1.06, 0.05, "time-limited")]
)
def test_a_certificate_says_proven_only_within_the_gap_asked_for(bound: float, allowed: float, ended: str) -> None:
    found = Certificate.of(1.0, bound, allowed, 3, 9, "time-limited")
    assert found.ended == ended
    assert found.gap == pytest.approx(bound - 1)


def test_head_room_is_what_the_parts_leave() -> None:
    memory = StageMemory(0, "a", 10, 20, 3, 4, 100, 90)
    assert (memory.total_bytes, memory.head_room_bytes) == (37, 53)


def test_the_digest_sees_every_change_and_nothing_else() -> None:
    def workload(p: float = 0.25, second: int = 9, name: str = "w") -> Workload:
        return Workload(name, "s", np.array([3, 4]), np.array([8, second]), np.array([p, 1 - p]))

    assert content_digest(workload()) == content_digest(workload())
    big_endian = dataclasses.replace(workload(), input_tokens=np.array([3, 4], ">i8"))
    assert content_digest(big_endian) == content_digest(workload())
    different = [workload(), workload(p=0.25 + 1e-12), workload(second=10), workload(name="x"), (1, "1"), (1, 1), (11,),
                 ((1,), 1), (1.0, 1), {"a": 1}, {"a": 2}, None, (), ("",), True, 1]  # fmt: skip
    assert len({content_digest(value) for value in different}) == len(different)
    with pytest.raises(TypeError, match="set has no digest"):
        content_digest({1, 2})
