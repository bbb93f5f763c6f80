"""Goal A5: the event simulation on a real vLLM run, with the run's own settings and published operator times."""

from __future__ import annotations

import pathlib

import pytest

from tests.benchmarks import vllm_replay


def test_replay_of_a_real_run_is_within_its_goals(shared_data: pathlib.Path) -> None:
    data = shared_data / "llmservingsim"
    if not (data / vllm_replay.RUN).is_dir():
        pytest.skip("no llmservingsim run in ../shared/data")
    run = vllm_replay.RecordedRun(data)
    found = vllm_replay.compare(run, run.replay(data))
    for name, (goal_percent, _) in vllm_replay.GOALS.items():
        assert abs(found[name]["error_percent"]) <= goal_percent, name
