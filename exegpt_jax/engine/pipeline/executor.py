"""The Executor of several stages: the Runner's words carried out on a pipeline, its results read as from one stage.

    release, move -> encode calls through the stages, each inserted on every stage -> decode micro-batches in turns

`dispatch` starts as much as the windows take; the rest of a phase's iterations follows while its results are waited
for, so that everything is dispatched by the Runner's one thread.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Container, Sequence

from exegpt_jax.engine import compiling
from exegpt_jax.engine.api import NO_SLOT, DecodeResult, EncodeCall, EncodeResult, Pending, PhaseCommand
from exegpt_jax.engine.cache import Layers
from exegpt_jax.engine.compiling import Program
from exegpt_jax.engine.pipeline.pipeline import EncodePass, Pipeline
from exegpt_jax.engine.pipeline.rounds import DecodeRounds
from exegpt_jax.engine.pipeline.slots import PipelineSlots
from exegpt_jax.engine.results import Parts, encode_result, guarded, tells
from exegpt_jax.sharding.stage import Stage
from solver.plan.memory import cache_row_bytes, payload_bytes
from solver.plan.plan import Plan

Progress = Callable[[str, int, int], None]


@dataclasses.dataclass
class _Prompt:
    """A prompt of which chunks are still to come: its keys and values on every stage."""

    layers: list[Layers]
    tokens: list[int]
    context: int


class PipelineExecutor:
    """Runs phases on the stages of a plan.

    Args:
      stages: in order, each on devices of its own.
      plan: whose stages encode and decode.
      clock: of the Runner, for the times of each stage.
    """

    def __init__(self, stages: Sequence[Stage], plan: Plan, clock: Callable[[], float] = time.monotonic) -> None:
        self.plan = plan
        self.pipeline = Pipeline(stages, plan, clock)
        self._prompts: dict[int, _Prompt] = {}
        self._slots: PipelineSlots
        self._rounds: DecodeRounds | None = None

    def warm_up(
        self, progress: Progress = lambda name, done, total: None, kinds: Container[str] | None = None
    ) -> tuple[Program, ...]:
        """Compiles what the plan can reach on every stage (or only these kinds), and allocates the cache."""
        programs = self.compile(progress, kinds)
        self._begin()
        self._compiled_before = compiling.compilations()
        return programs

    def compile(
        self,
        progress: Progress = lambda name, done, total: None,
        kinds: Container[str] | None = None,
        other: PipelineExecutor | None = None,
    ) -> tuple[Program, ...]:
        """The first half of `warm_up`: nothing is run, no cache is made.

        Programs that are alike are taken from `other`, which is warm, for another plan on the same stages.
        """
        engines = self.pipeline.engines
        total = sum(len(engine.recipes()) for engine in engines)
        programs: tuple[Program, ...] = ()
        for index, engine in enumerate(engines):
            before = len(programs)
            programs += engine.warm_up(
                _counted_on(progress, before, total),
                kinds,
                None if other is None else other.pipeline.engines[index],
            )
        compiling.listen()
        return programs

    def take_over(self, before: PipelineExecutor, resizes: Sequence[Program | None] | None) -> None:
        """Goes on where another plan on the same stages stops, whose prompts are all encoded; compiled so far.

        Args:
          before: not to be used any more, unless this raises; without rows where `resizes` is None.
          resizes: by stage, makes a part of the cache of one of the other plan's; None of a stage: as it is. None: an
            empty cache takes the place of the old one, which is freed first.
        """
        if before._rounds is not None:
            before._rounds.finish()
            before._rounds = None
        if resizes is None:
            before._slots.forget()
            self._begin()
        else:
            self._slots = before._slots.carried(self.pipeline, resizes)
        self._compiled_before = before._compiled_before

    def reset(self) -> None:
        """Back to an empty cache; the old one's memory is free before the new one is taken."""
        self._slots.forget()
        self._rounds = None
        self.pipeline.forget()
        self._begin()

    def _begin(self) -> None:
        self._prompts.clear()
        self._slots = PipelineSlots(self.pipeline)

    def live_bytes(self) -> int:
        """Bytes on a device of the fullest stage: slots in use and prompts in progress, by the planner's accounting."""
        rows, contexts = len(self._slots.used), [prompt.context for prompt in tuple(self._prompts.values())]
        length, dtype = self.plan.cache_tokens, self.plan.cache_dtype

        def held(stage: Stage) -> int:
            prompts = sum(payload_bytes(stage.spec, stage.stage, 1, context, dtype) for context in contexts)
            return rows * cache_row_bytes(stage.spec, stage.stage, length, dtype) + prompts

        return max(held(engine.stage) for engine in self.pipeline.engines)

    def compilations(self) -> int:
        return compiling.compilations() - self._compiled_before

    def dispatch(self, command: PhaseCommand) -> Pending:
        return guarded(lambda: self._dispatch(command))

    def _dispatch(self, command: PhaseCommand) -> Pending:
        if self._rounds is not None:
            # Of a phase whose tokens nobody has read.
            self._rounds.finish()
        for request in command.drop:
            self._prompts.pop(request, None)
        self._slots.release(command.release)
        self._slots.move(command.moves)
        encoded = []
        for call in command.encode:
            done = self._encode(call)
            assert done.block is not None
            encoded.append(_Call(call, Parts.of(done.block, 1, tells(call)), done))
        self._rounds = None if command.decode is None else DecodeRounds(self.pipeline, self._slots, command.decode)
        if self._rounds is not None:
            self._rounds.dispatch_what_fits()
        return _Phase(self.pipeline, tuple(encoded), self._rounds)

    def _encode(self, call: EncodeCall) -> EncodePass:
        """Prompts through the stages, and those that are complete into their slots."""
        if not call.context_bucket:
            done = self.pipeline.encode(call, None, ())
            self._slots.insert(done.payloads, call.tokens_bucket, call.rows, [row.slot for row in call.rows])
            return done
        (row,) = call.rows
        prompt = self._prompts.pop(row.request, None)
        held, before = (None, []) if prompt is None else (prompt.layers, prompt.tokens)
        done = self.pipeline.encode(call, held, before)
        if row.slot == NO_SLOT:
            layers = [payload.layers for payload in done.payloads]
            self._prompts[row.request] = _Prompt(layers, [*before, *row.token_ids], call.context_bucket)
        else:
            self._slots.insert(done.payloads, call.context_bucket, call.rows, [row.slot])
        return done


@dataclasses.dataclass(frozen=True)
class _Call:
    """An encode call under way."""

    call: EncodeCall
    parts: Parts
    done: EncodePass


@dataclasses.dataclass(frozen=True)
class _Phase:
    """A phase under way; reading it dispatches what is left of it."""

    pipeline: Pipeline
    calls: tuple[_Call, ...]
    rounds: DecodeRounds | None

    def encoded(self) -> tuple[EncodeResult, ...]:
        return guarded(lambda: tuple(self._first_tokens(index, each) for index, each in enumerate(self.calls)))

    def _first_tokens(self, index: int, each: _Call) -> EncodeResult:
        windows = self.pipeline.windows
        while each.done.marks[-1].ready_s is None:
            windows.wait()
            if self.rounds is not None:
                self.rounds.dispatch_what_fits()
        rows, tokens = len(each.call.rows), sum(len(row.token_ids) for row in each.call.rows)
        shape = each.call.rows_bucket, each.call.tokens_bucket
        work = self.pipeline.work(each.done.marks, index, 0, rows, tokens, shape)
        return dataclasses.replace(encode_result(each.call, each.parts), work=tuple(work))

    def decoded(self) -> DecodeResult | None:
        rounds = self.rounds
        return None if rounds is None else guarded(rounds.finish)


def _counted_on(progress: Progress, before: int, total: int) -> Progress:
    """The progress of one engine as part of all: `before` programs of `total` were done before it."""
    return lambda name, done, of_this: progress(name, before + done, total)
