"""A toy model with everything that a plan is made from, and commands run in this process."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from solver.facts import cluster_file, profile_file, workload_file
from solver.facts.model_config import read_model_spec
from tests.serving import in_process
from tests.solver.planner_cases import random_profile, random_workload, small_cluster

CONFIG = {
    "model_type": "llama", "hidden_size": 64, "intermediate_size": 128, "num_attention_heads": 8,
    "num_key_value_heads": 4, "num_hidden_layers": 4, "vocab_size": 1000, "max_position_embeddings": 4096,
}  # fmt: skip


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with everything that a plan is made from."""
    folder = tmp_path_factory.mktemp("toy")
    (folder / "toy").mkdir()
    (folder / "toy" / "config.json").write_text(json.dumps(CONFIG))
    rng = np.random.default_rng(0)
    spec = read_model_spec(folder / "toy")
    profile = random_profile(rng, spec, tensors=(1,), shape=profile_file.shape_digest(spec))
    profile_file.write_profile(profile, folder / "profile.json")
    other = random_profile(rng, spec, tensors=(1,), shape="f" * 64)
    profile_file.write_profile(other, folder / "other.json")
    (folder / "cluster.json").write_text(cluster_file.to_text(small_cluster(per_island=1)))
    workload = workload_file.file_of(random_workload(rng), "made up")
    (folder / "workload.json").write_text(workload_file.to_text(workload))
    return folder


def inputs(toy: Path) -> list[str]:
    return [
        f"--model={toy / 'toy'}",
        *(f"--{name}={toy / f'{name}.json'}" for name in ("cluster", "profile", "workload")),
    ]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """Runs a command here; flags begin at their defaults every time."""
    return functools.partial(in_process.call, capsys)


def last_line(text: str, word: str) -> dict:
    name, _, found = text.splitlines()[-1].partition(" ")
    assert name == word
    return json.loads(found)


@pytest.fixture
def planned(toy: Path, tmp_path: Path, run: Callable) -> Path:
    path = tmp_path / "plan.json"
    status, _, errors = run("plan", *inputs(toy), "--latency_bound_s=0.2", "--policies=rra", f"--output={path}")
    assert status == 0, errors
    return path
