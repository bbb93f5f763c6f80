"""Sends one prompt to a server and prints the answer as it comes.

The answer goes to standard output; how it ended, and how long it took, to standard error. `--prompt=-` reads the prompt
from standard input.
"""

from __future__ import annotations

import sys
import time
from typing import cast

from absl import flags

from serving.flags import connection, shared

FLAGS = flags.FlagValues()
connection.define_connection(FLAGS)
flags.DEFINE_string("prompt", None, "the prompt, or - for standard input", flag_values=FLAGS)
flags.DEFINE_bool("chat", False, "send the prompt as a user's message, by the model's chat template", flag_values=FLAGS)
flags.DEFINE_integer("max_tokens", None, "most tokens to generate", flag_values=FLAGS)
flags.DEFINE_float("temperature", None, "0 is greedy; the model's default if absent", flag_values=FLAGS)
flags.DEFINE_float("top_p", None, "share of the probability to sample from", flag_values=FLAGS)
flags.DEFINE_integer("top_k", None, "how many of the best tokens to sample from", flag_values=FLAGS)
flags.DEFINE_integer("seed", None, "the same seed gives the same answer", flag_values=FLAGS)
flags.DEFINE_multi_string("stop", None, "text that ends the answer; may be given 4 times", flag_values=FLAGS)
flags.DEFINE_integer("priority", None, "lower is earlier; 0 if absent", flag_values=FLAGS)
flags.DEFINE_float("timeout_s", None, "the call's deadline", flag_values=FLAGS)

_PARAMETERS = ("max_tokens", "temperature", "top_p", "top_k", "seed", "stop", "priority")


def main(argv: list[str]) -> int:
    shared.refuse_arguments(argv)
    prompt: str | None = FLAGS.prompt
    if prompt is None:
        raise ValueError("prompt: not given; give --prompt=TEXT, or --prompt=- for standard input")
    text = sys.stdin.read() if prompt == "-" else prompt

    from serving.client import Client, Parameters

    given = {name: FLAGS[name].value for name in _PARAMETERS}
    parameters = cast(Parameters, {name: value for name, value in given.items() if value is not None})
    asked = [{"role": "user", "content": text}] if FLAGS.chat else text
    begin_s = time.monotonic()
    finish = None
    with Client(**connection.connection(FLAGS)) as client:
        try:
            for chunk in client.stream(asked, timeout_s=FLAGS.timeout_s, **parameters):
                print(chunk.text, end="", flush=True)
                finish = chunk.finish
        finally:
            print()
    if finish is not None:
        print(
            f"{finish.reason}: {finish.prompt_tokens} prompt tokens, {finish.completion_tokens} generated, "
            f"first token after {finish.first_token_s:.3f} s, {time.monotonic() - begin_s:.3f} s in all",
            file=sys.stderr,
        )
    return 0
