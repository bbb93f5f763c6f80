"""Answers over gRPC: exegpt.v1.Generation, the Open Inference Protocol, grpc.health.v1 and server reflection.

Listens at once; health turns SERVING when every program is compiled. SIGTERM or Ctrl-C refuses new requests, answers
the admitted ones, and ends with status 0. --plan=FILE runs a plan of `exegpt plan` exactly as it stands. What it
predicted and what was measured is said at the end: SERVE {json} on standard output.
"""

from __future__ import annotations

import asyncio
import json
import logging
from pathlib import Path
from typing import TYPE_CHECKING

from absl import flags

from serving.flags import config, security, seeing, shared
from serving.outputs import check_target
from serving.plans import replanning
from serving.telemetry import logs

if TYPE_CHECKING:
    from serving.doors.vllm_engine.card import ModelCard
    from serving.engine.link import Stopped

_LOG = logging.getLogger(__name__)

FLAGS = flags.FlagValues()
config.define_config(FLAGS)
shared.define_model(FLAGS)
shared.define_schedule(FLAGS)
shared.define_plan(FLAGS)
shared.define_engine(FLAGS)
replanning.define_replan(FLAGS)
flags.DEFINE_string("address", "127.0.0.1:50051", "host:port to listen on; port 0 picks a free one", flag_values=FLAGS)
flags.DEFINE_bool(
    "allow_remote", False, "listen beyond this machine even without encryption or keys", flag_values=FLAGS
)
flags.DEFINE_integer(
    "max_requests", 1024, "requests admitted at once, running and waiting; more are refused", 1, flag_values=FLAGS
)
flags.DEFINE_integer(
    "max_queued_tokens",
    None,
    "tokens that wait, prompts and answers at their longest; absent: of max_requests requests of half the longest",
    1,
    flag_values=FLAGS,
)
flags.DEFINE_integer(
    "max_queued_bytes", None, "memory of the requests that wait; absent: 256 MiB", 1, flag_values=FLAGS
)
flags.DEFINE_float("drain_s", 30.0, "how long admitted requests may run on after SIGTERM", 0.0, flag_values=FLAGS)
flags.DEFINE_float(
    "settle_s",
    0.0,
    "after SIGTERM, how long health says NOT_SERVING before requests are refused",
    0.0,
    flag_values=FLAGS,
)
security.define_security(FLAGS)
seeing.define_seeing(FLAGS)
flags.DEFINE_bool(
    "vllm_engine",
    False,
    "speak vllm.grpc.engine.VllmEngine too, so that smg in front gives the OpenAI HTTP API (needs the extra smg)",
    flag_values=FLAGS,
)


def main(argv: list[str]) -> int:
    shared.refuse_arguments(argv)
    if FLAGS.print_config:
        print(config.as_toml(FLAGS), end="")
        return 0
    shared.refuse_beside_plan(FLAGS)
    check_target("timeline", FLAGS.timeline)
    directory = shared.model_directory(FLAGS)
    logs.configure(FLAGS.log_format, requests=FLAGS.log_requests)
    logging.getLogger("serving").setLevel(logging.INFO)

    from serving.admission.budget import QueueLimits
    from serving.life_cycle import run_server
    from serving.server import ServerOptions

    options = ServerOptions(
        address=FLAGS.address,
        allow_remote=FLAGS.allow_remote,
        health_address=FLAGS.health_address,
        tls=security.tls_files(FLAGS),
        keys=None if FLAGS.keys is None else Path(FLAGS.keys),
        key_limit=FLAGS.key_limit,
        model_name=directory.resolve().name,
        max_requests=FLAGS.max_requests,
        queue=QueueLimits(FLAGS.max_queued_tokens, FLAGS.max_queued_bytes),
        settle_s=FLAGS.settle_s,
        drain_s=FLAGS.drain_s,
        vllm_engine=_card(directory),
        seeing=seeing.seeing_options(FLAGS, directory.resolve().name),
    )

    options.check()
    _LOG.info("configuration: %s", config.as_line(FLAGS))

    def say(line: str) -> None:
        # A supervisor may wait for these lines.
        print(line, flush=True)

    def tell(stopped: Stopped) -> None:
        for line in stopped.lines:
            _LOG.info("%s", line)
        say(f"SERVE {json.dumps(stopped.figures)}")

    return asyncio.run(run_server(options, directory, shared.given_flags(FLAGS), say=say, on_stopped=tell))


def _card(directory: Path) -> ModelCard | None:
    if not FLAGS.vllm_engine:
        return None
    from serving.doors.vllm_engine.card import check_installed, read_card

    check_installed()
    return read_card(directory)
