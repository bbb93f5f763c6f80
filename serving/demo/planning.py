"""The demo's plan: `exegpt plan` in a process of its own, as anybody would call it, on files that stay."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from serving.demo import lengths
from serving.demo.baselines import baseline_plan, read_settings
from serving.demo.process import environment
from solver.facts.cluster_file import load_cluster
from solver.facts.model_config import read_model_spec
from solver.facts.profile_file import read_profile
from solver.facts.workload_file import file_of, to_text
from solver.plan.plan import Plan, from_json

CLUSTER = "cpu"
# Ends the search on a machine that others use; it takes a few seconds otherwise.
_TIME_LIMIT_S = 15.0
_PATIENCE_S = 120.0


@dataclasses.dataclass(frozen=True)
class Folder:
    """Where the demo's files lie."""

    path: Path

    @property
    def profile(self) -> Path:
        return self.path / "profile.json"

    @property
    def workload(self) -> Path:
        return self.path / "workload.json"

    @property
    def report(self) -> Path:
        return self.path / "report.html"

    def plan(self, policy: str) -> Path:
        return self.path / f"plan-{policy}.json"


@dataclasses.dataclass(frozen=True)
class Planned:
    """What will be run.

    Attributes:
      plans: by policy: the planner's rra, and each baseline's; their files lie in the folder.
      bound_s: on latency.
      command: that made the plan, for people.
    """

    plans: dict[str, Plan]
    bound_s: float
    command: str


def make_plans(
    directory: Path, folder: Folder, max_rows: int, bound_s: float | None, baselines: Sequence[str]
) -> Planned:
    """Plans for the profile that lies in the folder.

    Args:
      directory: of the model.
      max_rows: that baselines share out; the profile reaches as far.
      bound_s: on latency; None: one that suits the machine.
      baselines: of `serving.demo.baselines`, in this order.

    Raises:
      ValueError: no plan keeps the bound, or something else is wrong, in one line.
    """
    spec, asked = read_model_spec(directory), lengths.workload()
    folder.workload.write_text(to_text(file_of(asked, "Apache-2.0")), encoding="utf-8")
    if bound_s is None:
        bound_s = lengths.bound_s(read_profile(folder.profile), spec, load_cluster(CLUSTER), asked, max_rows)
    arguments = [
        *("plan", f"--model={directory}", f"--cluster={CLUSTER}", f"--profile={folder.profile}"),
        *(f"--workload={folder.workload}", f"--latency_bound_s={bound_s:g}", "--policies=rra"),
        *(f"--time_limit_s={_TIME_LIMIT_S:g}", f"--output={folder.plan('rra')}"),
    ]
    done = subprocess.run(
        [sys.executable, "-m", "serving.cli", *arguments],
        capture_output=True, text=True, timeout=_PATIENCE_S, check=False, env=environment(),
    )  # fmt: skip
    if done.returncode != 0:
        lines = done.stderr.strip().splitlines() or [f"ended with status {done.returncode}"]
        raise ValueError(f"exegpt plan: {lines[-1].removeprefix('exegpt: ')}")
    plans = {"rra": from_json(folder.plan("rra").read_text(encoding="utf-8"))}
    settings = read_settings()
    for policy in baselines:
        plans[policy] = baseline_plan(settings[policy], spec, asked, max_rows)
        folder.plan(policy).write_text(plans[policy].to_json(), encoding="utf-8")
    return Planned(plans, bound_s, " ".join(["exegpt", *arguments]))
