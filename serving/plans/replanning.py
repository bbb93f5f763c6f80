"""Following the traffic, as flags ask for it: --replan=off|within|auto.

`within` adjusts the schedule by what the plan itself says of drift. `auto` also makes plans: `exegpt plan` runs in a
process of its own, with the very inputs of the plan in force but for the workload, which is what was seen.
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import os
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

from absl import flags

from exegpt_jax.engine.api import Executor
from exegpt_jax.runner import follow
from exegpt_jax.runner.next_plan import Replan, Successor
from exegpt_jax.runner.predictors import Successive
from serving.plans.planned import predictor_of
from serving.progress import Display
from solver.facts.model_spec import ModelSpec
from solver.facts.workload import Workload
from solver.facts.workload_file import file_of, to_text
from solver.plan.inputs import Inputs
from solver.plan.plan import Plan, from_json
from solver.plan.timeline import Predictor

MODES = ("off", "within", "auto")
# Of one search; what was found by then runs.
_TIME_LIMIT_S = 60.0
_NICE = 10


def define_replan(values: flags.FlagValues) -> None:
    flags.DEFINE_enum(
        "replan",
        "off",
        MODES,
        "follow the traffic: within: adjust the schedule as far as its plan allows; auto: plan again beyond that",
        flag_values=values,
    )


@dataclasses.dataclass(frozen=True)
class Following:
    """What a Runner is given: None where the plan is to stand for good; the predictor follows swaps."""

    follower: follow.Follower | None
    predictor: Predictor | None


def following_of(
    directory: Path,
    values: flags.FlagValues,
    spec: ModelSpec,
    plan: Plan,
    predictor: Predictor | None,
    display: Display,
) -> Following:
    """What --replan asks for.

    Raises:
      ValueError: auto, but nothing tells what to keep: flags made the plan, or no engine runs it.
    """
    mode: str = values.replan
    if mode == "off":
        return Following(None, predictor)
    logging.getLogger(follow.__name__).setLevel(logging.INFO)
    if mode == "within":
        return Following(follow.Follower(plan, first_token=spec.first_token), predictor)
    if plan.inputs is None or plan.bounds is None:
        raise ValueError("replan: auto, but flags made this schedule, so no bound is known; name a plan with --plan")
    if values.engine == "fake":
        raise ValueError("replan: auto, but the fake engine takes no other plan; use --replan=within")
    from exegpt_jax.runner.succeed import successor_of

    successive = Successive(predictor)
    predicted = [predictor]

    def prepare(executor: Executor, new: Plan) -> Successor:
        expected = predictor_of(new, spec, values.profile, values.cluster, display)
        successor = successor_of(directory, executor, new, values.memory_fraction)
        if successor.plan != new:
            expected = predictor_of(successor.plan, spec, values.profile, values.cluster, display)
        predicted[0] = expected
        return successor

    def swapped(phase: int, new: Plan) -> None:
        successive.go_on(phase, predicted[0])

    again = PlanCommand(directory, tuple(values.profile or ()), values.cluster)
    replan = Replan(again, prepare, again.stop, swapped)
    return Following(follow.Follower(plan, replan=replan, first_token=spec.first_token), successive)


class PlanCommand:
    """`exegpt plan` for what was seen; waited for by the thread that asks.

    Args:
      model: directory.
      profiles, cluster: by name, as the plan in force was given them; none: found by the plan's names.
    """

    def __init__(self, model: Path, profiles: tuple[str, ...] = (), cluster: str | None = None) -> None:
        self._model, self._profiles, self._cluster = model, profiles, cluster
        self._lock = threading.Lock()
        self._process: subprocess.Popen[str] | None = None
        self._stopped = False

    def __call__(self, workload: Workload, plan: Plan) -> Plan:
        """The best plan for `workload` under the bounds of `plan`.

        Raises:
          ValueError: there is none, or it is not made from the same facts; one line.
        """
        with tempfile.TemporaryDirectory(prefix="exegpt-") as folder:
            given, output = Path(folder, "traffic.json"), Path(folder, "plan.json")
            given.write_text(to_text(file_of(workload, "of those who asked")), encoding="utf-8")
            status, errors = self._run([*self._arguments(plan), f"--workload={given}", f"--output={output}"])
            if status != 0:
                lines = errors.strip().splitlines() or [f"exegpt plan ended with status {status}"]
                raise ValueError(lines[-1].removeprefix("exegpt: "))
            new = from_json(output.read_text(encoding="utf-8"))
        assert plan.inputs is not None, "asked only of a plan that was planned"
        assert new.inputs is not None, "a planned plan has inputs"
        check_same(plan.inputs, new.inputs)
        # The weights are the same, whatever their directory is called.
        return dataclasses.replace(new, model=plan.model)

    def stop(self) -> None:
        """Ends a search under way."""
        with self._lock:
            self._stopped = True
            if self._process is not None:
                self._process.terminate()

    def _arguments(self, plan: Plan) -> list[str]:
        inputs, bounds = plan.inputs, plan.bounds
        assert inputs is not None, "asked only of a plan that was planned"
        assert bounds is not None, "asked only of a plan that was planned"
        policies = dict.fromkeys([plan.schedule.policy, *(other.policy for other in plan.runners_up)])
        found = {
            "model": self._model,
            "cluster": self._cluster or inputs.cluster.name.partition("[:")[0],
            "devices": inputs.devices,
            "policies": ",".join(policies),
            "bound_from": bounds.bound_from,
            "dtype": plan.dtype,
            "cache_dtype": plan.cache_dtype,
            "cache_tokens": plan.cache_tokens,
            "max_prompt_tokens": plan.max_prompt_tokens,
            "time_limit_s": _TIME_LIMIT_S,
        }
        for name in ("latency", "ttft", "tpot"):
            found[f"{name}_percentile"] = getattr(bounds, f"{name}_percentile")
            if (bound_s := getattr(bounds, f"{name}_s")) is not None:
                found[f"{name}_bound_s"] = bound_s
        if plan.margins is not None:
            found |= {"margin": plan.margins.profile_delta, "overflow": plan.margins.overflow}
        if self._profiles:
            found["profile"] = ",".join(self._profiles)
        return [f"--{name}={value}" for name, value in found.items()]

    def _run(self, arguments: list[str]) -> tuple[int, str]:
        """Status and standard error; behind everything else that runs here."""
        command = [sys.executable, "-m", "serving.cli", "plan", *arguments]
        # The search is one thread; the libraries below it must not take the cores that serve.
        own = {
            "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
            "OMP_NUM_THREADS": "1",
            "OPENBLAS_NUM_THREADS": "1",
        }
        with self._lock:
            if self._stopped:
                raise ValueError("the runner is stopping")
            process = self._process = subprocess.Popen(
                command, env={**os.environ, **own}, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
            )
        # It may have ended already, or the platform may have no such thing.
        with contextlib.suppress(OSError, AttributeError):
            os.setpriority(os.PRIO_PROCESS, process.pid, _NICE)
        try:
            errors = process.communicate()[1]
        finally:
            with self._lock:
                self._process = None
        return process.returncode, errors


def check_same(before: Inputs, now: Inputs) -> None:
    """Raises ValueError unless both plans were made from the same model, cluster and profiles by the same formulas."""
    pairs = [("model", before.model.digest, now.model.digest), ("cluster", before.cluster.digest, now.cluster.digest)]
    pairs += [("solver_version", before.solver_version, now.solver_version)]
    digests = [[profile.digest for profile in inputs.profiles] for inputs in (before, now)]
    pairs += [("profile", " ".join(digests[0]), " ".join(digests[1]))]
    for name, one, other in pairs:
        if one != other:
            raise ValueError(
                f"{name}: the plan in force was made from {one[:12]}, what is found by its name is {other[:12]}; name "
                f"the one it was made from with --{name}"
            )
