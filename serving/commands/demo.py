"""The whole house in a minute: profiles the embedded model, plans for a latency bound, runs the plan, checks it all.

The model writes numbers in words; the demo asks for numbers that training never saw, so a right answer was worked out,
not remembered. A server process measures the model; `exegpt plan` finds the schedule with the highest throughput under
a bound; the server runs it over gRPC, and after it static batching, iteration-level batching and chunked prefill under
the same load; this process is the client. Exit status 1 if anything fails or fewer than 98% of the answers are right.
"""

from __future__ import annotations

import math
from pathlib import Path

from absl import flags

from serving.demo.baselines import BASELINES
from serving.flags import shared

_EMBEDDED = Path(__file__).resolve().parents[2] / "configs" / "demo" / "numbers"

FLAGS = flags.FlagValues()
shared.define_model(FLAGS)
FLAGS.set_default("model", str(_EMBEDDED))
flags.DEFINE_integer("requests", 2000, "requests to send under each schedule", 1, flag_values=FLAGS)
flags.DEFINE_integer("max_rows", 128, "rows of the key/value cache, for every schedule", 4, flag_values=FLAGS)
flags.DEFINE_float(
    "latency_bound_s",
    None,
    "limit on latency that the plan keeps; one that suits the machine if absent",
    flag_values=FLAGS,
)
flags.DEFINE_string("profile", None, "take this profile instead of measuring one", flag_values=FLAGS)
flags.DEFINE_list("baselines", list(BASELINES), "what the plan is held against; none if empty", flag_values=FLAGS)
flags.DEFINE_float("profile_s", 30.0, "measures no further point after this long", 0.0, flag_values=FLAGS)
flags.DEFINE_bool("measure", False, "measure even where an earlier demo has measured this machine", flag_values=FLAGS)
flags.DEFINE_integer("seed", 0, "which numbers are asked", flag_values=FLAGS)
flags.DEFINE_string("folder", "build/demo", "for the profile, the plans and the report", flag_values=FLAGS)
flags.DEFINE_string("picture", None, "also write what is printed as an SVG picture", flag_values=FLAGS)


def _baselines() -> tuple[str, ...]:
    """In the order of the house. Raises ValueError for one that is none."""
    for name in FLAGS.baselines:
        if name not in BASELINES:
            raise ValueError(f"baselines: {name!r} is none; choose of {', '.join(BASELINES)}")
    return tuple(name for name in BASELINES if name in FLAGS.baselines)


def main(argv: list[str]) -> int:
    shared.refuse_arguments(argv)
    directory = shared.model_directory(FLAGS)
    bound_s = FLAGS.latency_bound_s
    if bound_s is not None and not 0 < bound_s < math.inf:
        raise ValueError(f"latency_bound_s: {bound_s} is no limit; give seconds above 0")
    # Only here does gRPC come in.
    from serving.demo.client import run_demo

    run_demo(
        directory,
        requests=FLAGS.requests,
        max_rows=FLAGS.max_rows,
        bound_s=bound_s,
        profile=None if FLAGS.profile is None else Path(FLAGS.profile),
        profile_s=FLAGS.profile_s,
        measure=FLAGS.measure,
        baselines=_baselines(),
        seed=FLAGS.seed,
        folder=Path(FLAGS.folder),
        picture=None if FLAGS.picture is None else Path(FLAGS.picture),
    )
    return 0
