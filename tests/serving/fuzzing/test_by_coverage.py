"""Coverage-guided inputs, in a process of their own (`by_coverage`): thousands here, a million in the full run."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.serving.servers import ROOT, environment

ATHERIS = ROOT / ".cache" / "atheris"
RUNS, QUICK_RUNS = 1_000_000, 10_000


def test_no_input_gets_further_than_a_line(tiny_model: Path, tmp_path: Path, full: bool) -> None:
    if not (ATHERIS / "atheris").is_dir():
        pytest.skip("atheris: not in .cache/atheris; .ci/run atheris puts it there")
    runs = RUNS if full else QUICK_RUNS
    paths = [str(ATHERIS), environment()["PYTHONPATH"]]
    done = subprocess.run(
        [sys.executable, "-m", "tests.serving.fuzzing.by_coverage", str(tiny_model), f"-runs={runs}", "-seed=1"],
        capture_output=True, text=True, errors="replace", timeout=3600 if full else 300, cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    assert f"Done {runs} runs" in done.stderr
    found = [int(edges) for edges in re.findall(r"cov: (\d+)", done.stderr)]
    # The first input is empty and refused at once (21 edges); 366 were reached when this was written.
    assert found[-1] > 10 * found[0], found
    print(f"{runs} inputs reach {found[-1]} edges, the first ones {found[0]}")
