"""The front end's hold on the engine: what it asks reaches a live engine process, and whatever happens to that process
every request gets its tokens once, in order, and one last event.

    ask -> kept here -> the process; its events -> taken off here -> who asked
    it dies, or falls silent -> another is started, builds the same, and gets what is kept: from the start what was not
    told of, behind what was told the rest

Everything runs on one event loop.
"""

from __future__ import annotations

import asyncio
import dataclasses
import itertools
import json
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from exegpt_jax.runner.events import Event
from exegpt_jax.runner.limits import check
from exegpt_jax.runner.loop import Stats
from exegpt_jax.runner.request import Request
from serving.engine.deaths import Deaths
from serving.engine.ledger import Ledger
from serving.engine.process import EngineProcess
from serving.engine.wire import from_request, to_events
from serving.proto.exegpt.engine.v1 import link_pb2 as pb
from solver.plan.plan import Plan, from_json

_LOG = logging.getLogger(__name__)

_PING_S = 0.25
# A process that answers no ping for so long does not look well; after the second time it is replaced. One that begins
# answers when Python has imported what it needs, and loading may keep the interpreter to itself for a while.
_SILENT_S = 1.5
HUNG_S = 10.0
_BUILD_HUNG_S = 120.0
# The engine ends requests at phase boundaries; who asked must not wait for one that does not come.
_DEADLINE_GRACE_S = 0.5
_NOTHING = Stats(0, 0, 0, 0, 0, 0, 0, 0, broken=False)


class EngineGone(Exception):
    """The engine cannot be had any more; one line says why."""


@dataclasses.dataclass(frozen=True)
class Stopped:
    """What a run measured: for machines, and for people."""

    figures: Mapping[str, object]
    lines: tuple[str, ...]


class EngineLink:
    """One engine, over as many processes as it takes.

    Args:
      on_events: gets each list of events.
      on_state: hears whether the engine works; False, True, False, .. in turn, beginning with True once it is built.
      on_plan: gets each plan that takes the place of the one that was built.
      on_line: gets what the engine says while it builds; None leaves it to the process to print.
      cores: that the engine keeps to; all if empty.
      environment: for its processes.
      hung_s: a process that works and is silent for so long is killed.

    Attributes:
      gone: set when the engine cannot be had any more.
    """

    def __init__(
        self,
        on_events: Callable[[list[Event]], None],
        on_state: Callable[[bool], None],
        on_plan: Callable[[Plan], None] | None = None,
        on_line: Callable[[str], None] | None = None,
        cores: Sequence[int] = (),
        environment: Mapping[str, str] | None = None,
        hung_s: float = HUNG_S,
    ) -> None:
        self._stats = _NOTHING
        self.gone: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self._on_events, self._on_state = on_events, on_state
        self._on_plan, self._on_line = on_plan, on_line
        self._cores, self._environment, self._hung_s = tuple(cores), environment, hung_s
        self._ledger = Ledger()
        self._work = pb.Work()
        self._process: EngineProcess | None = None
        # Of the first build that succeeded and of those that replace it.
        self._plan: Plan | None = None
        self._build = pb.Build()
        self._tasks: list[asyncio.Task[None]] = []
        self._answers: dict[int, asyncio.Future[Any]] = {}
        self._numbers = itertools.count(1)
        self._built: asyncio.Future[Plan] | None = None
        self._stopped: asyncio.Future[Stopped] | None = None
        self._running = self._well = False
        self._deaths = Deaths()
        self._heard_s = 0.0

    # Who asks.

    async def build(self, flags: Sequence[str]) -> Plan:
        """Has the engine load and compile what the flags of `exegpt serve` say, and run it, in place of what it ran.

        Raises:
          ValueError: one line: why that is not possible.
        """
        self._build = pb.Build(flags=flags, cores=self._cores, tell=self._on_line is not None)
        return await self._build_first(self._build)

    async def again(self) -> Plan:
        """Has it run what it was stopped in, from the beginning. Raises ValueError with one line."""
        return await self._build_first(pb.Build(cores=self._cores))

    async def _build_first(self, build: pb.Build) -> Plan:
        # Whoever dies now is not replaced: who asked for it hears why.
        self._plan = None
        if self._process is None:
            await self._start()
            self._tasks = [asyncio.create_task(self._listen()), asyncio.create_task(self._watch())]
        try:
            return await self._begin(build)
        except EngineGone as error:
            raise ValueError(f"engine: {error}") from error

    @property
    def plan(self) -> Plan:
        """In force."""
        assert self._plan is not None, "built before anything is asked"
        return self._plan

    @property
    def works(self) -> bool:
        """As `on_state` was told last."""
        return self._well

    def stats(self) -> Stats:
        """As the process said a moment ago."""
        return self._stats

    def submit(self, request: Request) -> None:
        """Raises ValueError with one line where the plan can never run it."""
        check(request, self.plan)
        self._ledger.enter(request)
        self._ask_for(request)

    def cancel(self, request_id: str) -> None:
        """No event comes any more; unknown ids are ignored."""
        if self._ledger.strike(request_id):
            self._cancel_there(request_id)

    async def ask(self, about: str, arguments: Mapping[str, object] | None = None) -> Any:
        """The answer to one of `serving.telemetry.run_view`'s questions. Raises ValueError with one line."""
        if self._process is None or not self._running:
            raise ValueError("engine: nothing runs; ask again when it does")
        number = next(self._numbers)
        future = self._answers[number] = asyncio.get_running_loop().create_future()
        self._process.send(pb.ToEngine(ask=pb.Ask(number=number, about=about, arguments=json.dumps(arguments or {}))))
        return await future

    async def stop(self) -> Stopped | None:
        """Ends the run; requests that are left get an abort event. None where there was no engine to ask."""
        if self._process is None or not self._running:
            self._drop_all("the server is stopping")
            return None
        self._running = False
        self._stopped = asyncio.get_running_loop().create_future()
        self._process.send(pb.ToEngine(stop=pb.Stop()))
        try:
            return await self._stopped
        except EngineGone:
            return None
        finally:
            self._stopped = None
            self._drop_all("the server is stopping")

    async def close(self) -> None:
        """Ends the process."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._drop_all("the server is stopping")
        if self._process is not None:
            await self._process.end()
            self._process = None

    @property
    def pid(self) -> int | None:
        """Of the process that is there now."""
        return None if self._process is None else self._process.pid

    # To the process.

    async def _start(self) -> None:
        self._process = await EngineProcess.start(self._environment)
        self._heard_s = time.monotonic()

    async def _begin(self, build: pb.Build) -> Plan:
        """The build on the process at hand; what is kept follows it."""
        assert self._process is not None
        self._built = asyncio.get_running_loop().create_future()
        self._process.send(pb.ToEngine(build=build))
        before = self._plan
        try:
            plan = self._plan = await self._built
        finally:
            self._built = None
        self._running = True
        self._deaths.built(time.monotonic())
        if before is not None and before.digest != plan.digest:
            # What followed the traffic went with the process that it ran in.
            self._swap(plan)
        self._resume(plan)
        self._set_well(True)
        return plan

    def _resume(self, plan: Plan) -> None:
        asked, ended = self._ledger.go_on(plan)
        for request in asked:
            self._ask_for(request)
        self._tell(ended)

    def _ask_for(self, request: Request) -> None:
        if self._running:
            self._flush_soon()
            self._work.requests.append(from_request(request))

    def _cancel_there(self, request_id: str) -> None:
        if self._running:
            self._flush_soon()
            self._work.cancel_ids.append(request_id)

    def _flush_soon(self) -> None:
        """Whatever is asked in one turn of the loop travels together."""
        if not (self._work.requests or self._work.cancel_ids):
            asyncio.get_running_loop().call_soon(self._flush)

    def _flush(self) -> None:
        work, self._work = self._work, pb.Work()
        if self._process is not None and self._running:
            self._process.send(pb.ToEngine(work=work))

    # From the process.

    async def _listen(self) -> None:
        """Hears processes one after the other."""
        while True:
            assert self._process is not None
            while (message := await self._process.receive()) is not None:
                self._heard_s = time.monotonic()
                self._take(message)
            await self._replace()
            if self.gone.done():
                return

    def _take(self, message: pb.FromEngine) -> None:
        match message.WhichOneof("kind"):
            case "events":
                self._deliver(to_events(message.events))
            case "said" if self._on_line is not None:
                self._on_line(message.said.line)
            case "built" if self._built is not None and not self._built.done():
                self._built.set_result(from_json(message.built.plan))
            case "stopped" if self._stopped is not None:
                figures = json.loads(message.stopped.figures)
                self._stopped.set_result(Stopped(figures, tuple(message.stopped.lines)))
            case "failed":
                self._fail(message.failed.line)
            case "pong" if message.pong.stats:
                self._stats = Stats(**json.loads(message.pong.stats))
                if self._stats.broken:
                    self._fail("its devices could not be reset after a failure")
            case "told":
                self._answer(message.told)
            case "swapped":
                self._swap(from_json(message.swapped.plan))

    def _swap(self, plan: Plan) -> None:
        self._plan = plan
        if self._on_plan is not None:
            self._on_plan(plan)

    def _deliver(self, events: list[Event]) -> None:
        known = self._ledger.take(events)
        if known:
            self._deaths.told()
        self._tell(known)

    def _tell(self, events: list[Event]) -> None:
        if events:
            self._on_events(events)

    def _answer(self, told: pb.Told) -> None:
        future = self._answers.pop(told.number, None)
        if future is None or future.done():
            return
        if told.error:
            future.set_exception(ValueError(told.error))
        else:
            future.set_result(json.loads(told.answer))

    def _fail(self, line: str) -> None:
        """Whoever waits for the process hears it; where nobody does, it is replaced."""
        if self._built is not None and not self._built.done():
            self._built.set_exception(ValueError(line))
        elif self._stopped is not None and not self._stopped.done():
            self._stopped.set_exception(EngineGone(line))
        elif self._process is not None:
            _LOG.error("the engine failed: %s", line)
            self._process.kill()

    async def _replace(self) -> None:
        """The process has gone: another one takes its place, unless that is hopeless."""
        assert self._process is not None
        worked, self._running = self._running, False
        self._work = pb.Work()
        self._set_well(False)
        status = await self._process.end()
        self._process = None
        line = f"the engine process ended with {_words(status)}"
        self._fail_waiting(line)
        if self._plan is None or self._stopped is not None:
            self._give_up(line)
            return
        if worked:
            self._ledger.died()
        hopeless = self._deaths.died(time.monotonic())
        if hopeless is not None:
            self._give_up(f"{line}, {hopeless}")
            return
        _LOG.error("%s; another one is started for %d requests", line, len(self._ledger))
        try:
            await self._start()
        except OSError as error:
            self._give_up(f"no engine process can be started: {error.strerror}")
            return
        self._tasks.append(asyncio.create_task(self._rebuild()))

    async def _rebuild(self) -> None:
        try:
            await self._begin(self._build)
        except ValueError as error:
            self._give_up(f"the engine could not be built again: {error}")
        except EngineGone:
            # It died while it was built, and is replaced in its turn.
            return
        else:
            _LOG.warning("the engine works again, with %d requests", len(self._ledger))

    def _fail_waiting(self, line: str) -> None:
        """Whoever waits for an answer of a process that has gone."""
        for number in tuple(self._answers):
            self._answer(pb.Told(number=number, error=f"engine: {line}"))
        for future in (self._built, self._stopped):
            if future is not None and not future.done():
                future.set_exception(EngineGone(line))

    def _give_up(self, line: str) -> None:
        _LOG.error("%s", line)
        self._drop_all("the engine is lost")
        if not self.gone.done():
            self.gone.set_result(line)

    def _drop_all(self, detail: str) -> None:
        self._tell(self._ledger.end_all(detail))

    # Watching.

    async def _watch(self) -> None:
        """Pings, and what does not wait for an engine: deadlines, and its silence."""
        for number in itertools.count():
            await asyncio.sleep(_PING_S)
            now_s = time.monotonic()
            self._end_overdue(now_s)
            if self._process is None:
                continue
            self._process.send(pb.ToEngine(ping=pb.Ping(number=number)))
            silent_s = now_s - self._heard_s
            if self._running:
                self._set_well(silent_s < _SILENT_S)
            if silent_s > (_BUILD_HUNG_S if self._built is not None else self._hung_s):
                _LOG.error("the engine process has been silent for %.0f s; it is killed", silent_s)
                self._process.kill()

    def _end_overdue(self, now_s: float) -> None:
        overdue = self._ledger.end_overdue(now_s - _DEADLINE_GRACE_S)
        for event in overdue:
            self._cancel_there(event.id)
        self._tell(overdue)

    def _set_well(self, well: bool) -> None:
        if well != self._well:
            self._well = well
            self._on_state(well)


def _words(status: int) -> str:
    return f"signal {-status}" if status < 0 else f"status {status}"
