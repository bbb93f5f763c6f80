"""The demo's server process: one model, measured once, then served over gRPC under each plan that it is given.

    python -m serving.demo.worker MODEL_DIRECTORY

Orders come on standard input (`serving.demo.messages`); their end ends the process, so it never outlives the client.
"""

from __future__ import annotations

import asyncio
import dataclasses
import functools
import gc
import hashlib
import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import IO, TypeVar

from exegpt_jax.profiler.grid import Limits
from exegpt_jax.profiler.measure import Wishes, cpu_model, profile_model
from exegpt_jax.runner.build_planned import build_planned
from exegpt_jax.runner.loop import Runner
from exegpt_jax.text.prompts import ModelText
from exegpt_jax.weights.digest import checkpoint_digest
from serving.assemble import Service
from serving.beside import beside
from serving.cores import kept_to, split_cores
from serving.demo.lengths import workload
from serving.demo.messages import Figures, Message, Order, parse_order
from serving.demo.process import cache_folder
from serving.doors import generation, health
from serving.frontend import Frontend
from serving.plan_files import read_plan
from serving.server import ServerOptions, make_server
from solver.facts.model_config import read_model_spec
from solver.facts.profile import Profile
from solver.facts.profile_file import read_profile, write_profile
from solver.plan.timeline import Timeline
from solver.simulate.predicted import PhasePredictor

_Result = TypeVar("_Result")

_REPEATS = 3
_SAY_EVERY_S = 3.0
_SHOWN_PHASES = 10
# A profile further off than this, over all phases of a run, is not kept.
_STALE = 0.2
# The Runner must not wait long for the interpreter while the wire's side has it.
_SWITCH_S = 0.0005


def main() -> int:
    # The messages keep standard output to themselves, whatever a library may print.
    out = os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding="utf-8")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    sys.setswitchinterval(_SWITCH_S)
    try:
        _Worker(Path(sys.argv[1]), out).run()
    except (ValueError, OSError) as error:
        Message("failed", str(error)).send(out)
        return 1
    return 0


class _Worker:
    """One model and what was made of it so far: its profile, and a warm service for each plan."""

    def __init__(self, directory: Path, out: IO[str]) -> None:
        self._directory, self._out = directory, out
        self._cores = split_cores()
        self._profile: Profile | None = None
        # Where later demos find it.
        self._kept: Path | None = None
        self._services: dict[str, Service] = {}
        self._runner: Runner | None = None

    def run(self) -> None:
        # The engine's threads are made by the first who needs it, here, and stay on its cores.
        with kept_to(self._cores.engine):
            import jax

            jax.local_devices()
        with kept_to(self._cores.wire):
            asyncio.run(self._serve())

    async def _serve(self) -> None:
        frontend = Frontend(max_requests=1024)
        states = health.Health([generation.SERVICE_NAME])
        server, address = make_server(ServerOptions("127.0.0.1:0"), frontend, states)
        await server.start()
        while line := (await asyncio.to_thread(sys.stdin.readline)).strip():
            order = parse_order(line)
            if order.do == "profile":
                said = await self._prepare(functools.partial(self._measure, order))
                Message("profiled", said).send(self._out)
            elif order.do == "serve":
                self._end()
                service = await self._prepare(functools.partial(self._service, order.path))
                self._begin(service, frontend)
                states.set_serving(True)
                Message("serving", address).send(self._out)
            else:
                Message("stopped", figures=self._end()).send(self._out)
        self._end()
        states.close()
        await server.stop(1.0)

    async def _prepare(self, work: Callable[[], _Result]) -> _Result:
        """On a thread of its own and on every core; programs stay where the engine's threads are."""

        def run() -> _Result:
            with kept_to(self._cores.both):
                return work()

        return await asyncio.to_thread(run)

    def _say(self, line: str) -> None:
        Message("say", line).send(self._out)

    def _measure(self, order: Order) -> str:
        """Writes the profile: given, or measured now, or by an earlier demo of this model on this machine."""
        if order.given:
            self._profile = read_profile(Path(order.given))
            write_profile(self._profile, Path(order.path))
            return f"taken from {order.given}"
        asked = workload()
        limits = Limits(order.max_rows, asked.most_tokens, asked.most_input)
        kept = self._kept = cache_folder("profiles") / f"{self._key(limits)}.json"
        if kept.is_file() and not order.anew:
            self._profile = read_profile(kept)
            write_profile(self._profile, Path(order.path))
            return f"as an earlier demo measured it ({kept}; --measure measures again)"
        kept.parent.mkdir(parents=True, exist_ok=True)
        # In the demo's own folder: another demo may measure at the same time.
        samples = Path(order.path).with_suffix(".samples.jsonl")
        said_s = time.monotonic()

        def progress(done: int, total: int, note: str) -> None:
            nonlocal said_s
            if time.monotonic() - said_s > _SAY_EVERY_S:
                said_s = time.monotonic()
                self._say(f"profile: {done} of {total} samples")

        wishes = Wishes(limits, time_budget_s=order.budget_s, repeats=_REPEATS)
        # The thread that dispatches computes too, so it measures where the Runner will run, and not on every core.
        with kept_to(self._cores.engine):
            found = profile_model(self._directory, wishes, samples, progress, resume=not order.anew)
        self._profile = found.profile
        for path in (kept, Path(order.path)):
            write_profile(found.profile, path)
        samples.unlink()
        return (
            f"{found.points_measured} of {found.points} points measured, {found.samples} samples in "
            f"{found.seconds:.1f} s; they spread by {found.profile.spread:.1%}"
        )

    def _key(self, limits: Limits) -> str:
        """A hash of everything that times depend on."""
        import jax

        cores = len(self._cores.engine) or os.cpu_count()
        facts = [checkpoint_digest(self._directory), dataclasses.asdict(limits), cores, cpu_model(), jax.__version__]
        return hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:16]

    def _service(self, path: str) -> Service:
        """The plan in that file on an engine of its own, compiled when it is first asked for."""
        if path not in self._services:
            plan, spec = read_plan(path), read_model_spec(self._directory)
            built = build_planned(self._directory, plan, progress=self._say)
            sizes = {"max_prompt_tokens": plan.max_prompt_tokens, "cache_tokens": plan.cache_tokens}
            text = ModelText.load(self._directory, vocab_size=spec.vocab_size, **sizes)
            assert self._profile is not None, "profiled before anything is served"
            predictor = PhasePredictor(plan, spec, (self._profile,), None)
            self._services[path] = Service(plan, built.executor, text, predictor)
        service = self._services[path]
        service.executor.reset()
        return service

    def _begin(self, service: Service, frontend: Frontend) -> None:
        gc.collect()
        gc.freeze()
        self._runner = Runner(service.plan, service.executor, frontend.hand_over, predictor=service.predictor)
        with kept_to(self._cores.engine):
            self._runner.start()
        frontend.open(service.text, self._runner)

    def _end(self) -> Figures | None:
        """Stops whatever runs; what it measured."""
        runner, self._runner = self._runner, None
        if runner is None:
            return None
        runner.stop()
        found = beside(runner.plan, runner)
        if self._kept is not None and runner.plan.prediction is not None and abs(found.phases_error or 0.0) > _STALE:
            # Measured while others used the machine, or they do now: no later demo should plan with it.
            self._kept.unlink(missing_ok=True)
            self._say("the profile does not fit what ran: the next demo measures again")
        return Figures(found.fields(), found.measured.latency_s, tuple(found.lines()), _middle(runner.timeline))


def _middle(timeline: Timeline) -> tuple[dict[str, object], ...]:
    """Entries of a few phases."""
    entries = list(timeline)
    phases = sorted({entry.phase for entry in entries})
    shown = set(phases[max(0, (len(phases) - _SHOWN_PHASES) // 2) :][:_SHOWN_PHASES])
    return tuple(dataclasses.asdict(entry) for entry in entries if entry.phase in shown)


if __name__ == "__main__":
    sys.exit(main())
