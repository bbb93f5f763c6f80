"""A plan file as something a Runner can run, exactly as it stands, with what it predicts of every phase.

read -> fits model, dtype and devices -> executor of its stages; profiles and cluster it names -> predictor
"""

from __future__ import annotations

from pathlib import Path

from serving.outputs import STANDARD
from serving.plans import plan_files
from serving.progress import Display
from solver.facts import presets
from solver.facts.cluster import Cluster
from solver.facts.cluster_file import load_cluster
from solver.facts.model_config import read_model_spec
from solver.facts.model_spec import ModelSpec
from solver.facts.profile import Profile
from solver.facts.profile_file import digest, find_profile, read_profile
from solver.plan.digests import content_digest
from solver.plan.fits import AtHand, check_fits
from solver.plan.inputs import Inputs, ProfileInput
from solver.plan.plan import Plan
from solver.simulate.predicted import PhasePredictor


def fitting_plan(directory: Path, name: str, kinds: list[str] | None) -> Plan:
    """The plan that --plan names, if it fits.

    Args:
      directory: of the model.
      name: a file, or - for standard input.
      kinds: of the devices here, by number; None where none is used.

    Raises:
      ValueError: one line that names file, field, both values and the remedy.
    """
    from exegpt_jax.weights.digest import checkpoint_digest

    plan = plan_files.read_plan(name)
    found = AtHand(str(directory), read_model_spec(directory), lambda: checkpoint_digest(directory), kinds)
    check_fits(plan, "standard input" if name == STANDARD else name, found)
    return plan


def predictor_of(
    plan: Plan, spec: ModelSpec, given: list[str] | None, cluster: str | None, display: Display
) -> PhasePredictor | None:
    """What the plan predicts for phases; None, and a line why, where what it was made from is not at hand.

    Args:
      given: profiles by name; None: those that ship.
      cluster: by name; None: the preset of the plan's.

    Raises:
      ValueError: what is given is not what the plan was made from.
    """
    if plan.inputs is None:
        if given or cluster:
            raise ValueError(
                f"{'profile' if given else 'cluster'}: given, but flags made this plan from nothing; leave it out"
            )
        display.say("no phase is predicted: flags made this plan, not a profile")
        return None
    named = _named(given or [], {wanted.device_kind for wanted in plan.inputs.profiles})
    try:
        profiles = [_profile(wanted, named, spec, plan.dtype) for wanted in plan.inputs.profiles]
        found = _cluster(plan.inputs, cluster) if cluster or len(plan.schedule.stages) > 1 else None
        return PhasePredictor(plan, spec, profiles, found)
    except _Absent as error:
        display.say(f"no phase is predicted: {error}")
        return None


class _Absent(Exception):
    """Something that the plan was made from is not here."""


def _named(given: list[str], kinds: set[str]) -> dict[str, tuple[Profile, str]]:
    """Profiles that a flag names, with their names, by device kind."""
    found = {}
    for name in given:
        profile = read_profile(presets.find("profiles", name))
        if profile.device_kind not in kinds:
            raise ValueError(
                f"profile: {name} is of device kind {profile.device_kind}, which the plan does not use; leave it out"
            )
        found[profile.device_kind] = (profile, name)
    return found


def _cluster(inputs: Inputs, given: str | None) -> Cluster:
    """The very cluster that the plan was made from."""
    wanted = inputs.cluster
    try:
        found = load_cluster(given or wanted.name.partition("[:")[0], inputs.devices)
    except (ValueError, OSError):
        if given:
            raise
        raise _Absent(f"name the cluster {wanted.name} with --cluster") from None
    if content_digest(found) == wanted.digest:
        return found
    if given:
        raise ValueError(
            f"cluster: the plan was made from {wanted.name} ({wanted.digest[:12]}), {given} is another "
            f"({content_digest(found)[:12]}); name that one, or plan again"
        )
    raise _Absent(f"the plan was made from another cluster {wanted.name}; name it with --cluster")


def _profile(wanted: ProfileInput, named: dict[str, tuple[Profile, str]], spec: ModelSpec, dtype: str) -> Profile:
    """The very profile that the plan was made from."""
    if wanted.device_kind in named:
        profile, name = named[wanted.device_kind]
        if digest(profile) != wanted.digest:
            raise ValueError(
                f"profile: the plan was made from {wanted.name} ({wanted.digest[:12]}), {name} is another "
                f"({digest(profile)[:12]}); name that one, or plan again"
            )
        return profile
    try:
        profile = find_profile(spec, wanted.device_kind, dtype)
    except ValueError:
        raise _Absent(f"name the profile of {wanted.device_kind} with --profile") from None
    if digest(profile) != wanted.digest:
        raise _Absent(f"the plan was made from another profile of {wanted.device_kind}; name it with --profile")
    return profile
