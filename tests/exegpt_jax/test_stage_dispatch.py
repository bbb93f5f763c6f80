"""The host's part of one iteration on one of several stages: measured on real programs, kept in the profile."""

from __future__ import annotations

import dataclasses
import pathlib

import numpy as np
import pytest

from exegpt_jax.models.random import random_stage
from exegpt_jax.profiler.grid import Limits
from exegpt_jax.profiler.stage_dispatch import stage_dispatch_s
from solver.facts.profile_file import digest, read_profile, write_profile
from solver.simulate.events.calls import CallTimes
from tests.exegpt_jax.tiny_models import spec_of
from tests.solver.planner_cases import random_profile, small_cluster, small_spec


def test_a_dispatch_takes_time_and_less_than_a_second() -> None:
    stage = random_stage(spec_of("llama"), tensor=2)
    assert 0 < stage_dispatch_s(stage, Limits(4, 32, 8), "float32") < 1


@dataclasses.dataclass(frozen=True)
class Place:
    """Of a stage with a next one."""

    kind: str
    tensor: int = 1
    layers: int = 1
    first: bool = False
    last: bool = False
    link: str | None = "host"


def test_a_profile_keeps_it_and_predictions_count_it(tmp_path: pathlib.Path) -> None:
    spec = small_spec()
    before = random_profile(np.random.default_rng(1), spec, tensors=(1,), padded=True)
    assert before.iteration_dispatch_s == before.dispatch_s
    write_profile(before, tmp_path / "before.json")
    assert "stage_dispatch_s" not in (tmp_path / "before.json").read_text()
    after = dataclasses.replace(before, stage_dispatch_s=before.dispatch_s + 0.25)
    write_profile(after, tmp_path / "after.json")
    read = read_profile(tmp_path / "after.json")
    assert read.iteration_dispatch_s == before.dispatch_s + 0.25
    assert digest(read) == digest(after) != digest(before)
    times = [CallTimes({p.device_kind: p}, spec, small_cluster()) for p in (before, read)]
    place = Place(before.device_kind)
    iterations = [each.decode_s(place, 4, 64) for each in times]  # type: ignore[arg-type]
    assert iterations[1] - iterations[0] == pytest.approx(0.25)
    calls = [each.leave_s(place, 4, 64) for each in times]  # type: ignore[arg-type]
    assert calls[0] == calls[1]
    with pytest.raises(ValueError, match="stage_dispatch_s"):
        write_profile(dataclasses.replace(before, stage_dispatch_s=-1.0), tmp_path / "bad.json")
