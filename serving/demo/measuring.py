"""The demo's profile: given, or as an earlier demo measured this model on this machine, or measured by `exegpt profile`
in a process of its own, on the cores where the engine will run.

Serving takes something of the same machine, which no profile of the engine alone knows. So requests that
nobody counts correct what was measured; what is kept for later demos is corrected already.
"""

from __future__ import annotations

import dataclasses
import hashlib
import importlib.metadata
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from exegpt_jax.weights.digest import checkpoint_digest
from serving.cores import Cores, kept_to
from serving.demo.lengths import workload
from serving.demo.messages import Figures
from serving.demo.process import cache_folder, environment
from solver.facts.hardware import cpu_model
from solver.facts.paced_profile import paced
from solver.facts.profile_file import read_profile, write_profile

_REPEATS = 3
_STALE = 0.2
# More is somebody else's use of the machine, which no plan can promise anything against.
_MOST_SPREAD = 0.5


@dataclasses.dataclass(frozen=True)
class Wanted:
    """Which profile, and where to write it.

    Attributes:
      path: where it is wanted.
      given: a file to take instead of measuring.
      max_rows: it reaches to.
      budget_s: no further point is measured after so long.
      anew: measure even where an earlier demo has.
    """

    path: Path
    given: Path | None
    max_rows: int
    budget_s: float
    anew: bool


def kept_at(directory: Path, cores: Cores, max_rows: int) -> Path:
    """Where a later demo finds what was measured; the name hashes everything that times depend on."""
    facts = [
        checkpoint_digest(directory),
        _reach(max_rows),
        len(cores.engine) or os.cpu_count(),
        cpu_model(),
        importlib.metadata.version("jax"),
    ]
    return cache_folder("profiles") / f"{hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:16]}.json"


def make_profile(directory: Path, wanted: Wanted, cores: Cores, say: Callable[[str], None]) -> str:
    """Writes it; returns where it comes from, for people. Raises ValueError with one line."""
    if wanted.given is not None:
        write_profile(read_profile(wanted.given), wanted.path)
        return f"taken from {wanted.given}"
    kept = kept_at(directory, cores, wanted.max_rows)
    if kept.is_file() and not wanted.anew:
        write_profile(read_profile(kept), wanted.path)
        return f"as an earlier demo measured it ({kept}; --measure measures again)"
    return _measure(directory, wanted, cores, say)


def correct(directory: Path, wanted: Wanted, cores: Cores, figures: Figures) -> str:
    """Corrects the profile by what the engine measured while it served, and keeps it for later demos.

    Returns a line for people."""
    pace, spread = figures.fields["phases_pace"], figures.fields["phases_spread"]
    if not (isinstance(pace, float) and isinstance(spread, float)):
        raise ValueError("profile: no phase was predicted while trying out; measure again with --measure")
    spread = min(spread, _MOST_SPREAD)
    why = f"times {pace:.3f} by {figures.fields['phases']} phases while serving"
    write_profile(paced(read_profile(wanted.path), pace, spread, why), wanted.path)
    kept = kept_at(directory, cores, wanted.max_rows)
    kept.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(wanted.path, kept)
    return (
        f"tried out under load, phases took {pace:.2f} times what the profile says, slow ones {spread:.0%} more: "
        "the profile is corrected, the plan made again"
    )


def needs_correction(directory: Path, wanted: Wanted, cores: Cores) -> bool:
    """Whether it was measured just now."""
    return wanted.given is None and (wanted.anew or not kept_at(directory, cores, wanted.max_rows).is_file())


def _reach(max_rows: int) -> dict[str, int]:
    """How far the profile goes, as flags of `exegpt profile`."""
    asked = workload()
    return {"max_rows": max_rows, "cache_tokens": asked.most_tokens, "max_prompt_tokens": asked.most_input}


def is_stale(figures: Figures) -> bool:
    """Whether the profile was off over all phases together: others used the machine then, or do now."""
    error = figures.fields["phases_error"]
    return isinstance(error, float) and abs(error) > _STALE


def _measure(directory: Path, wanted: Wanted, cores: Cores, say: Callable[[str], None]) -> str:
    command = [
        *(sys.executable, "-m", "serving.cli", "profile", f"--model={directory}", f"--output={wanted.path}"),
        *(f"--{name}={value}" for name, value in _reach(wanted.max_rows).items()),
        *(f"--time_budget_s={wanted.budget_s:g}", f"--repeats={_REPEATS}"),
        "--noresume" if wanted.anew else "--resume",
    ]
    # A process takes its cores from the thread that starts it.
    with kept_to(cores.engine):
        process = subprocess.Popen(
            command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, env=environment()
        )
    assert process.stderr is not None
    lines = []
    for line in process.stderr:
        lines.append(line.strip())
        say(lines[-1])
    if process.wait() != 0:
        last = lines[-1] if lines else f"ended with status {process.returncode}"
        raise ValueError(f"exegpt profile: {last.removeprefix('exegpt: ')}")
    return f"written to {wanted.path}"
