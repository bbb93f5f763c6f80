"""Answers a file of prompts: JSON lines in, JSON lines out, in the same order.

An input line is {"id", "prompt" or "messages", "max_tokens", "temperature", ...}; an output line is {"id", "token_ids",
"text", "finish_reason", "usage"}, or {"id", "error"} for a line that cannot be answered. `-` reads standard input or
writes standard output. --plan=FILE runs a plan of `exegpt plan` exactly as it stands. The summary on standard error,
what the plan predicted beside what was measured, ends with GENERATE {json}.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import sys
import time
from collections.abc import Iterable, Iterator

from absl import flags

from exegpt_jax.session import Completion, Failure, Session, complete_in_order
from exegpt_jax.text.prompts import ModelText, Prepared
from serving import assemble, jsonl
from serving.beside import Beside, beside
from serving.flags import shared
from serving.outputs import STANDARD, check_target
from serving.plans import replanning
from serving.progress import Display

FLAGS = flags.FlagValues()
shared.define_model(FLAGS)
shared.define_schedule(FLAGS)
shared.define_plan(FLAGS)
shared.define_engine(FLAGS)
replanning.define_replan(FLAGS)
flags.DEFINE_string("input", None, "file of JSON lines, or - for standard input", flag_values=FLAGS)
flags.DEFINE_string("output", None, "file of JSON lines to write, or - for standard output", flag_values=FLAGS)
flags.DEFINE_bool("resume", False, "continue a broken run: keep the answers that --output holds", flag_values=FLAGS)

_WINDOW_PER_ROW = 8
_SMALLEST_WINDOW = 256


@dataclasses.dataclass
class _Totals:
    """What the summary counts, over the lines of this run."""

    requests: int = 0
    errors: int = 0
    prompt_tokens: int = 0
    tokens: int = 0


def main(argv: list[str]) -> int:
    shared.refuse_arguments(argv)
    shared.refuse_beside_plan(FLAGS)
    source, target = _file("input"), _file("output")
    check_target("output", target)
    check_target("timeline", FLAGS.timeline)
    if source == FLAGS.plan == STANDARD:
        raise ValueError("plan: - and --input=- would both read standard input; name a file for one of them")
    directory = shared.model_directory(FLAGS)
    shared.prepare_devices(FLAGS)
    with jsonl.open_input(source) as stream:
        lines = jsonl.read_lines(stream)
        resume = FLAGS.resume
        done = jsonl.skip_answered(target, lines) if resume else 0

        with contextlib.ExitStack() as stack:
            display = stack.enter_context(Display())
            service = assemble.assemble(directory, FLAGS, display)
            output = stack.enter_context(jsonl.open_output(target, append=resume))
            session = stack.enter_context(_session(service))
            bar = display.bar("generate", jsonl.size_bytes(source))
            totals, begin_s = _Totals(), time.monotonic()
            window = max(_SMALLEST_WINDOW, _WINDOW_PER_ROW * service.plan.schedule.max_rows)
            for line, outcome in complete_in_order(session, _prepare(lines, service.text), window):
                jsonl.write(output, _answer(line, outcome, totals))
                bar(line.end_bytes, f"{totals.requests} requests, {totals.tokens} tokens")
            seconds = time.monotonic() - begin_s
        assemble.keep_timeline(session.runner, FLAGS)
    if session.runner.follower is not None:
        for record in session.runner.follower.records:
            print(f"replan {record.line()}", file=sys.stderr)
    _summarise(totals, done, seconds, beside(session.runner.plan, session.runner))
    return 0


def _session(service: assemble.Service) -> Session:
    return Session(service.plan, service.executor, service.text, service.predictor, service.follower)


def _file(name: str) -> str:
    value: str | None = FLAGS[name].value
    if not value:
        raise ValueError(f"{name}: not given; name a file with --{name}=FILE, or - for the standard stream")
    return value


def _prepare(lines: Iterable[jsonl.Line], text: ModelText) -> Iterator[tuple[jsonl.Line, Prepared | Failure]]:
    """Tokenises and checks each line; runs on the reading thread."""
    for line in lines:
        if line.fields is None:
            yield line, Failure(line.error or "line: is no request")
            continue
        try:
            yield line, text.prepare(line.fields)
        except ValueError as error:
            yield line, Failure(str(error))


def _answer(line: jsonl.Line, outcome: Completion | Failure, totals: _Totals) -> dict[str, object]:
    """The output line. A drawn seed that mattered is told; nothing in it depends on time or schedule."""
    totals.requests += 1
    if isinstance(outcome, Failure):
        totals.errors += 1
        return {"id": line.id, "error": outcome.error}
    totals.prompt_tokens += outcome.prompt_tokens
    totals.tokens += outcome.completion_tokens
    answer: dict[str, object] = {
        "id": line.id,
        "token_ids": list(outcome.token_ids),
        "text": outcome.text,
        "finish_reason": outcome.finish_reason,
        "usage": {"prompt_tokens": outcome.prompt_tokens, "completion_tokens": outcome.completion_tokens},
    }
    if outcome.stop_reason is not None:
        answer["stop_reason"] = outcome.stop_reason
    if outcome.seed_drawn:
        answer["seed"] = outcome.seed
    if outcome.logprobs:
        answer["logprobs"] = [{"logprob": entry.logprob, "top": entry.top} for entry in outcome.logprobs]
    return answer


def _summarise(totals: _Totals, done: int, seconds: float, found: Beside) -> None:
    summary = {
        "requests": totals.requests,
        "errors": totals.errors,
        "resumed_after": done,
        "prompt_tokens": totals.prompt_tokens,
        "tokens": totals.tokens,
        "seconds": round(seconds, 3),
        "tokens_per_s": round(totals.tokens / seconds, 2) if seconds > 0 else 0.0,
        "requests_per_s": round(totals.requests / seconds, 2) if seconds > 0 else 0.0,
        **found.fields(),
    }
    resumed = f" ({done} were answered before)" if done else ""
    counts = f"{totals.requests} requests{resumed}, {totals.errors} refused or failed, {totals.tokens} tokens"
    print(f"{counts} in {seconds:.1f} s", file=sys.stderr)
    for line in found.lines():
        print(line, file=sys.stderr)
    print(f"GENERATE {json.dumps(summary)}", file=sys.stderr, flush=True)
