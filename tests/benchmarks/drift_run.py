"""One run of `drift`: a Runner that follows the traffic or not, whoever asks beside it, and what came of it."""

from __future__ import annotations

import dataclasses
import pathlib
import statistics
import threading
import time
from collections.abc import Sequence

import numpy as np
from drift_traffic import Scenario

from exegpt_jax.engine.api import EncodeRow, Executor, Sampling
from exegpt_jax.engine.engine import Engine
from exegpt_jax.engine.executor import LocalExecutor
from exegpt_jax.runner.events import Event, Finished
from exegpt_jax.runner.follow import Follower
from exegpt_jax.runner.loop import Runner
from exegpt_jax.runner.next_plan import Replan, Successor
from exegpt_jax.runner.predictors import Successive
from exegpt_jax.runner.records import Record
from exegpt_jax.runner.request import Request
from exegpt_jax.runner.succeed import successor_of
from exegpt_jax.testing.hidden_lengths import HiddenLengths
from exegpt_jax.weights.loading import load_stage
from serving.plans.replanning import PlanCommand
from solver.facts.model_config import read_model_spec
from solver.facts.profile import Profile
from solver.facts.workload import Ints, Workload
from solver.plan.plan import Plan
from solver.plan.timeline import Predictor
from solver.simulate.predicted import PhasePredictor

MODES = ("off", "within", "auto")
# Answers of a span in which the bound is kept or missed, and the share of them that may be late.
SPAN_ANSWERS, LATE_SHARE = 100, 0.01
# Rows' worth of requests that wait at saturation.
_QUEUE = 3
# Requests of a measurement at saturation, in turns of all rows; of its answers the middle half counts.
_PROBE_TURNS = 60
# The plan at the end and a fresh one, in turns: the machine changes its speed meanwhile.
_PROBES = 3


@dataclasses.dataclass(frozen=True)
class Wrapped:
    """A successor of the executor whose lengths are hidden."""

    inner: Successor

    @property
    def plan(self) -> Plan:
        return self.inner.plan

    @property
    def carries(self) -> bool:
        return self.inner.carries

    @property
    def compiled(self) -> int:
        return self.inner.compiled

    def take_over(self, executor: Executor) -> Executor:
        assert isinstance(executor, HiddenLengths)
        return executor.around(self.inner.take_over(executor.executor))


class Asking:
    """A Runner, whoever asks it, and every answer.

    Attributes:
      finished: last events by number of request.
    """

    def __init__(
        self,
        plan: Plan,
        executor: LocalExecutor,
        vocab: int,
        follower: Follower | None = None,
        predictor: Predictor | None = None,
    ) -> None:
        self.outputs: list[int] = []
        self.finished: dict[int, Finished] = {}
        self._vocab, self._plan = vocab, plan
        self._rng = np.random.default_rng(0)
        self._done = threading.Event()
        hidden = HiddenLengths(executor, self._length)
        self.runner = Runner(plan, hidden, self._hear, predictor=predictor, follower=follower)

    def _length(self, row: EncodeRow) -> int:
        return self.outputs[row.request]

    def _hear(self, events: list[Event]) -> None:
        self.finished.update({int(event.id): event for event in events if isinstance(event, Finished)})
        self._done.set()

    def ask(self, prompt_tokens: int, output_tokens: int, most_output: int) -> None:
        prompt = tuple(int(token) for token in self._rng.integers(4, self._vocab, prompt_tokens))
        number = len(self.outputs)
        room = self._plan.cache_tokens - prompt_tokens
        self.outputs.append(min(output_tokens, room))
        self.runner.submit(Request(str(number), prompt, Sampling(max_tokens=min(most_output, room))))

    def wait(self) -> None:
        """Until everybody has an answer."""
        while len(self.finished) < len(self.outputs):
            self._done.clear()
            if len(self.finished) < len(self.outputs):
                self._done.wait(1.0)


@dataclasses.dataclass(frozen=True, eq=False)
class Outcome:
    """What came of a run: answers in order of their ends, decisions, and the rate at the end beside a fresh plan's."""

    requests: int
    finished: tuple[Finished, ...]
    records: tuple[Record, ...]
    compilations: int
    begun_s: float
    final_rps: float
    fresh_rps: float

    def fields(self, bound_s: float) -> dict[str, object]:
        good = [each for each in self.finished if each.reason in ("stop", "length")]
        latency = np.array([each.times.latency_s for each in good])
        ends = np.array([each.times.last_token_s for each in good]) - self.begun_s
        swaps = [record.numbers for record in self.records if record.event == "swap"]
        return {
            "requests": self.requests,
            "lost": self.requests - len(good),
            "seconds": float(ends.max()),
            "missed_s": missed_s(ends, latency, bound_s),
            "missed_by_5_percent_s": missed_s(ends, latency, 1.05 * bound_s),
            "over_share": float((latency > bound_s).mean()),
            "p99_s": float(np.percentile(latency, 99, method="inverted_cdf")),
            "swaps": len(swaps),
            "swap_s": max((float(swap["since_asked_s"] or 0) for swap in swaps), default=0.0),
            "held_s": max((float(swap["held_s"] or 0) for swap in swaps), default=0.0),
            "compilations": self.compilations,
            "final_rps": self.final_rps,
            "fresh_rps": self.fresh_rps,
            "records": [
                {"at_s": round(record.at_s - self.begun_s, 3), "phase": record.phase, "event": record.event}
                | dict(record.numbers)
                for record in self.records
            ],
        }


def missed_s(ends: np.ndarray, latency: np.ndarray, bound_s: float) -> float:
    """Seconds of the spans of so many answers, in order of their ends, of which more than the share was late."""
    order = np.argsort(ends, kind="stable")
    missed = 0.0
    for first in range(0, len(order), SPAN_ANSWERS):
        span = order[first : first + SPAN_ANSWERS]
        if (latency[span] > bound_s).mean() > LATE_SHARE:
            missed += float(ends[span[-1]] - (ends[order[first - 1]] if first else 0.0))
    return missed


class Bench:
    """The model, loaded once, and engines of the plans that runs begin with."""

    def __init__(self, directory: pathlib.Path, profile: Profile, profile_path: pathlib.Path, max_rows: int) -> None:
        self._directory, self._profile, self._profile_path, self._max_rows = directory, profile, profile_path, max_rows
        self._dtype = profile.dtype
        self._spec = read_model_spec(directory)
        self._engines: dict[str, Engine] = {}

    def _executor(self, plan: Plan) -> LocalExecutor:
        """Warm; runs that begin with the same plan share its programs."""
        if plan.digest not in self._engines:
            stage = load_stage(self._directory, self._spec, plan.schedule.stages[0], self._dtype)
            engine = Engine(stage, plan)
            engine.warm_up()
            self._engines[plan.digest] = engine
        return LocalExecutor(self._engines[plan.digest])

    def _follower(self, mode: str, plan: Plan, predictors: Successive) -> Follower | None:
        if mode == "off":
            return None
        if mode == "within":
            return Follower(plan)
        next_one: list[Predictor] = []
        again = PlanCommand(self._directory, (str(self._profile_path),), "cpu")

        def prepare(executor: Executor, new: Plan) -> Successor:
            assert isinstance(executor, HiddenLengths)
            successor = Wrapped(successor_of(self._directory, executor.executor, new))
            next_one[:] = [self._predictor(successor.plan)]
            return successor

        def swapped(phase: int, new: Plan) -> None:
            predictors.go_on(phase, next_one[0])

        return Follower(plan, replan=Replan(again, prepare, again.stop, swapped))

    def _predictor(self, plan: Plan) -> Predictor:
        return PhasePredictor(plan, self._spec, [self._profile], None)

    def run(
        self,
        plans: Sequence[Plan],
        capacity_rps: Sequence[float],
        scenario: Scenario,
        mode: str,
        seconds: float,
        load: float,
        seed: int,
    ) -> Outcome:
        """The scenario from the plan for its first part on; then the rate at saturation on its last part."""
        plan = plans[0]
        predictors = Successive(self._predictor(plan))
        follower = self._follower(mode, plan, predictors)
        asking = Asking(plan, self._executor(plan), self._spec.vocab_size, follower, predictors)
        draws = [Draws(part, seed + number) for number, part in enumerate(scenario.parts)]
        asking.runner.start()
        begun_s = time.monotonic()
        if scenario.saturated:
            self._saturate(asking, scenario, draws, begun_s, seconds)
        else:
            for moment in scenario.arrivals(seconds, capacity_rps, load, seed):
                time.sleep(max(0.0, begun_s + moment - time.monotonic()))
                draws[scenario.part_at(moment / seconds)].ask(asking)
        asking.wait()
        requests, finished = len(asking.outputs), tuple(asking.finished.values())
        # A plan that is still to come belongs to the end of the run.
        while follower is not None and (follower.busy or follower.successor is not None):
            time.sleep(0.1)
        records = tuple(follower.records) if follower is not None else ()
        # The fresh plan's programs are not the run's.
        compilations = asking.runner.stats().compilations
        final, fresh = [], []
        for _ in range(_PROBES):
            final.append(self._probe(asking, draws[-1]))
            fresh.append(self._saturated_rps(plans[-1], scenario.parts[-1], seed))
        asking.runner.stop()
        rates = statistics.median(final), statistics.median(fresh)
        return Outcome(requests, finished, records, compilations, begun_s, *rates)

    def _saturate(
        self, asking: Asking, scenario: Scenario, draws: Sequence[Draws], begun_s: float, seconds: float
    ) -> None:
        while (share := (time.monotonic() - begun_s) / seconds) < 1:
            rows = asking.runner.plan.schedule.max_rows
            for _ in range(_QUEUE * rows - asking.runner.stats().waiting):
                draws[scenario.part_at(share)].ask(asking)
            time.sleep(0.02)

    def _saturated_rps(self, plan: Plan, part: Workload, seed: int) -> float:
        """Of a plan as it stands."""
        asking = Asking(plan, self._executor(plan), self._spec.vocab_size)
        asking.runner.start()
        found = self._probe(asking, Draws(part, seed))
        asking.runner.stop()
        return found

    def _probe(self, asking: Asking, draws: Draws) -> float:
        """Requests a second, all asked at once, over the middle half of their ends."""
        first = len(asking.outputs)
        for _ in range(_PROBE_TURNS * asking.runner.plan.schedule.max_rows):
            draws.ask(asking)
        asking.wait()
        ends = np.sort([asking.finished[n].times.last_token_s for n in range(first, len(asking.outputs))])
        low, high = len(ends) // 4, 3 * len(ends) // 4
        return float((high - low) / (ends[high] - ends[low]))


class Draws:
    """Requests of a workload, one after the other: quantiles of its pairs, mixed, so that no luck is in the mean."""

    def __init__(self, workload: Workload, seed: int, count: int = 1000) -> None:
        self._rng = np.random.default_rng(seed)
        self._workload, self._count = workload, count
        self._most = workload.most_output
        self._left: list[tuple[int, int]] = []

    def ask(self, asking: Asking) -> None:
        if not self._left:
            self._left = self._mixed()
        asking.ask(*self._left.pop(), self._most)

    def _mixed(self) -> list[tuple[int, int]]:
        sides: list[Ints] = []
        for lengths in (self._workload.input_tokens, self._workload.output_tokens):
            order = np.argsort(lengths, kind="stable")
            below = np.cumsum(self._workload.probability[order])
            index = np.searchsorted(below, (np.arange(self._count) + 0.5) / self._count)
            sides.append(self._rng.permutation(lengths[order][np.minimum(index, len(order) - 1)]))
        return [(int(i), int(o)) for i, o in zip(*sides, strict=True)]
