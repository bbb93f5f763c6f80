"""The engine process: loads, compiles, and runs one Runner at a time for the front end that started it.

    python -m serving.engine.child FILE_DESCRIPTOR

It talks over the socket that it inherits, and ends when that closes: it never outlives its front end. One thread reads
and answers pings whatever the engine does; one writes, so that no reader can hold up a phase; building and stopping
have a thread of their own.
"""

from __future__ import annotations

import ctypes
import dataclasses
import gc
import json
import logging
import os
import queue
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from exegpt_jax.engine.rehearsal import rehearse
from exegpt_jax.runner.events import Event, Finished, Times
from exegpt_jax.runner.loop import Runner
from serving.beside import beside
from serving.cores import kept_to
from serving.engine.frames import Frames, framed
from serving.engine.wire import from_events, to_request
from serving.proto.exegpt.engine.v1 import link_pb2 as pb
from serving.telemetry.capture import Capture
from serving.telemetry.run_view import RunView

if TYPE_CHECKING:
    from serving.assemble import Service
    from serving.progress import Display
    from solver.plan.plan import Plan

_LOG = logging.getLogger(__name__)
# The Runner must not wait long for the interpreter while the socket's threads have it.
_SWITCH_S = 0.0005
_PR_SET_PDEATHSIG = 1


def main() -> int:
    # Ctrl-C in a terminal reaches every process in it; when to end is the front end's to say.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    _die_with_parent()
    sys.setswitchinterval(_SWITCH_S)
    # Standard output is the front end's.
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    _Child(socket.socket(fileno=int(sys.argv[1]))).run()
    logging.shutdown()
    # Threads may be in the middle of a program or a compilation, which nobody waits for any more.
    os._exit(0)


class _Child:
    """What runs here: at most one Runner."""

    def __init__(self, line: socket.socket) -> None:
        self._line = line
        self._out: queue.SimpleQueue[pb.FromEngine | list[Event]] = queue.SimpleQueue()
        self._runner: Runner | None = None
        # The plan that the front end knows to be in force.
        self._told: Plan | None = None
        self._view: RunView | None = None
        self._capture: Capture | None = None
        # What was built last, for the same again.
        self._service: Service | None = None

    def run(self) -> None:
        """Until the front end goes."""
        threading.Thread(target=self._write, name="writer", daemon=True).start()
        frames = Frames(self._line)
        while (body := frames.next()) is not None:
            self._take(pb.ToEngine.FromString(body))

    def _write(self) -> None:
        while True:
            message = self._out.get()
            if isinstance(message, list):
                message = pb.FromEngine(events=from_events(message))
            try:
                self._line.sendall(framed(message))
            except OSError:
                # The reader hears of it too.
                return

    def _take(self, message: pb.ToEngine) -> None:
        match message.WhichOneof("kind"):
            case "ping":
                self._answer(message.ping)
            case "work":
                self._work(message.work)
            case "build":
                self._aside(lambda: self._build(message.build))
            case "stop":
                self._aside(self._stop)
            case "ask":
                self._aside(lambda: self._tell(message.ask))

    def _answer(self, ping: pb.Ping) -> None:
        runner, stats = self._runner, ""
        if runner is not None:
            stats = json.dumps(dataclasses.asdict(runner.stats()))
            if (plan := runner.plan) is not self._told:
                self._told = plan
                self._out.put(pb.FromEngine(swapped=pb.Swapped(plan=plan.to_json())))
        self._out.put(pb.FromEngine(pong=pb.Pong(number=ping.number, stats=stats)))

    def _aside(self, work: Callable[[], None]) -> None:
        def run() -> None:
            try:
                work()
            # Whatever it is, the front end has to know, or it would wait for good.
            except Exception as error:
                expected = isinstance(error, ValueError | OSError)
                if not expected:
                    _LOG.exception("the engine process failed")
                line = str(error) if expected else f"{type(error).__name__}: {error}"
                self._out.put(pb.FromEngine(failed=pb.Failed(line=line.partition("\n")[0])))

        threading.Thread(target=run, daemon=True).start()

    def _work(self, work: pb.Work) -> None:
        runner = self._runner
        assert runner is not None, "built before anything is asked"
        for message in work.requests:
            request = to_request(message)
            try:
                runner.submit(request)
            except ValueError as error:
                times = Times(request.arrival_s or 0.0)
                refused = Finished(request.id, "abort", None, str(error), len(request.prompt_ids), 0, times)
                self._out.put([refused])
        for name in work.cancel_ids:
            runner.cancel(name)

    def _build(self, build: pb.Build) -> None:
        cores = frozenset(build.cores)
        service = self._service = self._load(build, cores) if build.flags else self._again()
        # Long-lived objects leave the collector's sight.
        gc.collect()
        gc.freeze()
        runner = Runner(
            service.plan, service.executor, self._out.put, predictor=service.predictor, follower=service.follower
        )
        with kept_to(cores):
            runner.start()
        self._view = RunView(runner, service.cache_bytes, self._capture)
        self._told, self._runner = service.plan, runner
        self._out.put(pb.FromEngine(built=pb.Built(plan=service.plan.to_json())))

    def _again(self) -> Service:
        service = self._service
        if service is None or service.follower is not None:
            # A follower may have put another plan in its place.
            raise ValueError("flags: not given, and nothing that was built can begin again; give them")
        service.executor.reset()
        return service

    def _load(self, build: pb.Build, cores: frozenset[int]) -> Service:
        """What the flags say, loaded and compiled."""
        from serving import assemble
        from serving.commands import serve
        from serving.flags import shared
        from serving.flags.seeing import seeing_options
        from serving.progress import Display
        from serving.telemetry import logs

        values = serve.FLAGS
        values.unparse_flags()
        values(["serve", *build.flags])
        logs.configure(values.log_format, requests=False)
        self._capture = seeing_options(values, "").capture
        with kept_to(cores):
            shared.prepare_devices(values)
            if values.engine != "fake":
                # The threads of programs are made here, and stay.
                import jax

                jax.local_devices()
        # Nobody computes yet, so compiling may use what there is.
        with kept_to(_every_core() if cores else cores), Display(self._say if build.tell else None) as display:
            service = assemble.assemble(shared.model_directory(values), values, display)
            if values.engine != "fake":
                with kept_to(cores):
                    _rehearse(service, display)
        return service

    def _say(self, line: str) -> None:
        self._out.put(pb.FromEngine(said=pb.Said(line=line)))

    def _stop(self) -> None:
        from serving.assemble import keep_timeline
        from serving.commands import serve

        runner, self._runner = self._runner, None
        assert runner is not None, "built before it is stopped"
        runner.stop()
        keep_timeline(runner, serve.FLAGS)
        found = beside(runner.plan, runner)
        figures = json.dumps({"requests": found.measured.requests, **found.fields()})
        self._out.put(pb.FromEngine(stopped=pb.Stopped(figures=figures, lines=found.lines())))

    def _tell(self, ask: pb.Ask) -> None:
        told = pb.Told(number=ask.number)
        try:
            if self._view is None:
                raise ValueError("engine: nothing runs yet; ask again when the server is ready")
            told.answer = json.dumps(self._view.answer(ask.about, json.loads(ask.arguments or "{}")))
        except ValueError as error:
            told.error = str(error)
        self._out.put(pb.FromEngine(told=told))


def _die_with_parent() -> None:
    """A process that is stopped does not see its socket close; Linux can end it all the same."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def _rehearse(service: Service, display: Display) -> None:
    began_s = time.monotonic()
    with display.working("running every program once"):
        phases = rehearse(service.executor, service.plan)
    display.say(f"every program has run once: {phases} phases in {time.monotonic() - began_s:.1f} s")


def _every_core() -> frozenset[int]:
    return frozenset(range(os.cpu_count() or 1))


if __name__ == "__main__":
    sys.exit(main())
