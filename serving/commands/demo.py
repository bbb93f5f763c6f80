"""The whole house in a minute: serves the embedded model over gRPC under two schedules, and checks every answer.

The model writes numbers in words; the demo asks for numbers that training never saw, so a right answer was worked out,
not remembered. A server process loads the model, measures a few settings of each schedule, and serves RRA, then static
batching on the same engine; this process is the client. Exit status 1 if anything fails or fewer than 98% are right.
"""

from __future__ import annotations

from pathlib import Path

from absl import flags

from serving import flags as shared

_EMBEDDED = Path(__file__).resolve().parents[2] / "configs" / "demo" / "numbers"

FLAGS = flags.FlagValues()
shared.define_model(FLAGS)
FLAGS.set_default("model", str(_EMBEDDED))
flags.DEFINE_integer("requests", 3000, "requests to send under each schedule", 1, flag_values=FLAGS)
flags.DEFINE_integer("max_rows", 128, "rows of the key/value cache, for both schedules", 4, flag_values=FLAGS)
flags.DEFINE_integer("seed", 0, "which numbers are asked", flag_values=FLAGS)
flags.DEFINE_string("picture", None, "also write what is printed as an SVG picture", flag_values=FLAGS)


def main(argv: list[str]) -> int:
    shared.refuse_arguments(argv)
    directory = shared.model_directory(FLAGS)
    # Only here does gRPC come in.
    from serving.demo.client import run_demo

    picture = None if FLAGS.picture is None else Path(FLAGS.picture)
    run_demo(directory, requests=FLAGS.requests, max_rows=FLAGS.max_rows, seed=FLAGS.seed, picture=picture)
    return 0
