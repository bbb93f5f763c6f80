"""What every test runs under: eight virtual CPU devices, deterministic property tests, a switch for full counts.

This file is read before any test module, so the environment below stands before jax is first imported. Setting
`EXEGPT_FULL=1` (make test-full) runs the counts that an issue names; without it tests take reduced ones.
"""

from __future__ import annotations

import os
import pathlib

os.environ["JAX_PLATFORMS"] = "cpu"
# Pool threads for every virtual device's side of a collective; with fewer, eight devices on two cores can deadlock.
os.environ["NPROC"] = "16"
os.environ["XLA_FLAGS"] = " ".join(
    [
        os.environ.get("XLA_FLAGS", ""),
        "--xla_force_host_platform_device_count=8",
        # A lost participant shows as a failure within minutes, not as a test that hangs.
        "--xla_cpu_collective_call_warn_stuck_timeout_seconds=60",
        "--xla_cpu_collective_call_terminate_timeout_seconds=240",
    ]
).strip()

import hypothesis
import pytest

from tests import full_progress

ROOT = pathlib.Path(__file__).resolve().parent.parent
FULL = os.environ.get("EXEGPT_FULL") == "1"

# Derandomised: the same examples every time, so a red run is red again. Timing says nothing on a shared machine.
hypothesis.settings.register_profile("quick", derandomize=True, deadline=None, max_examples=25, database=None)
hypothesis.settings.register_profile("full", derandomize=True, deadline=None, max_examples=500, database=None)
hypothesis.settings.load_profile("full" if FULL else "quick")


def pytest_configure(config: pytest.Config) -> None:
    if FULL:
        config.pluginmanager.register(full_progress.FullProgress(), "full-progress")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leaves tests marked `full` to make test-full."""
    if FULL:
        return
    skip = pytest.mark.skip(reason="full counts only: make test-full")
    for item in items:
        if "full" in item.keywords:
            item.add_marker(skip)


@pytest.fixture(scope="session")
def full() -> bool:
    """Whether this run takes the full counts (make test-full)."""
    return FULL


@pytest.fixture(scope="session")
def numbers_model() -> pathlib.Path:
    """The directory of the embedded model that writes numbers as words."""
    directory = ROOT / "configs" / "demo" / "numbers"
    if not (directory / "model.safetensors").is_file():
        pytest.skip("the embedded model configs/demo/numbers is not there; tests/tools/train_numbers.py makes it")
    return directory


@pytest.fixture(scope="session")
def shared_data() -> pathlib.Path:
    """Published measurements and traces beside the checkout; tests that read them skip without."""
    directory = ROOT.parent / "shared" / "data"
    if not directory.is_dir():
        pytest.skip("no ../shared/data beside this checkout")
    return directory
