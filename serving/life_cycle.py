"""A server's life: warm-up, readiness, drain, end.

It listens at once and says NOT_SERVING while the engine process loads and compiles; then health turns SERVING. It turns
back whenever the engine does not work, and for good at the first SIGTERM or SIGINT: what is new is refused, what was
admitted is waited for, and the status is 0; a second signal does not wait. An engine that cannot be had any more ends
the server with status 1.
"""

from __future__ import annotations

import asyncio
import gc
import signal
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path

from exegpt_jax.text.prompts import ModelText
from serving.doors import generation, health
from serving.engine.link import EngineLink, Stopped
from serving.frontend import Frontend
from serving.security.keys import Keyring
from serving.server import ServerOptions, make_health_server, make_server
from serving.telemetry.seeing import Seeing
from solver.facts.model_config import read_model_spec
from solver.plan.plan import Plan

_STOP_GRACE_S = 2.0


async def run_server(
    options: ServerOptions,
    directory: Path,
    flags: Sequence[str],
    *,
    say: Callable[[str], None],
    on_stopped: Callable[[Stopped], None],
) -> int:
    """Serves until a signal; returns the exit status.

    Args:
      options: where and how much; checked.
      directory: of the model.
      flags: of `exegpt serve`, for the engine process.
      say: prints one line for the operator ("listening on ...", "ready").
      on_stopped: told at the end what the run measured.

    Raises:
      ValueError, OSError: the engine cannot be built, or an address cannot be bound.
    """
    keyring = None if options.keys is None else Keyring(options.keys)
    stopping, impatient = asyncio.Event(), asyncio.Event()
    _on_signals(stopping, impatient, keyring)
    frontend = Frontend(options.max_requests, options.key_limit, options.queue)
    states = health.Health([generation.SERVICE_NAME])

    def on_state(works: bool) -> None:
        states.set_serving(works and frontend.state == "serving" and not stopping.is_set())

    server, bound = make_server(options, frontend, states, keyring)
    await server.start()
    say(f"listening on {bound}")
    probes = None
    seeing = Seeing(options.seeing, frontend, stopping.set, say)

    def on_plan(plan: Plan) -> None:
        seeing.see(link.ask, plan)
        frontend.gate.follow()

    link = EngineLink(frontend.deliver, on_state, on_plan)
    try:
        await seeing.open()
        if options.health_address is not None:
            probes, probed = make_health_server(options.health_address, states)
            await probes.start()
            say(f"health on {probed}")
        building = asyncio.ensure_future(link.build(flags))
        await _first(building, stopping.wait())
        if not building.done():
            building.cancel()
            say("stopped while warming up")
            return 0
        plan = building.result()
        seeing.see(link.ask, plan)
        frontend.open(await asyncio.to_thread(text_of, directory, plan), link)
        # Long-lived objects leave the collector's sight: a look at all of them is a pause for every request.
        gc.collect()
        gc.freeze()
        on_state(link.works)
        say("ready")
        await _first(stopping.wait(), link.gone)
        states.set_serving(False)
        if link.gone.done():
            say(f"the engine is lost: {link.gone.result()}")
            return 1
        if options.settle_s:
            say(f"settling for {options.settle_s:g} s")
            await _first(asyncio.sleep(options.settle_s), impatient.wait())
        say(f"draining {frontend.admitted} requests")
        await _first(frontend.drain(options.drain_s), impatient.wait(), link.gone)
        if frontend.admitted:
            say(f"cutting {frontend.admitted} requests short")
        # Its last events end the remaining streams, but for those it was never asked.
        frontend.cut_short()
        stopped = await link.stop()
        if stopped is not None:
            on_stopped(stopped)
    finally:
        frontend.cut_short()
        states.close()
        await link.close()
        await server.stop(_STOP_GRACE_S)
        if probes is not None:
            await probes.stop(0)
        await seeing.close()
    say("stopped")
    return 0


def text_of(directory: Path, plan: Plan) -> ModelText:
    """What the front end knows about text, for the plan in force."""
    sizes = {"max_prompt_tokens": plan.max_prompt_tokens, "cache_tokens": plan.cache_tokens}
    return ModelText.load(directory, vocab_size=read_model_spec(directory).vocab_size, **sizes)


def _on_signals(stopping: asyncio.Event, impatient: asyncio.Event, keyring: Keyring | None) -> None:
    def stop() -> None:
        if stopping.is_set():
            impatient.set()
        stopping.set()

    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop)
    if keyring is not None:
        loop.add_signal_handler(signal.SIGHUP, keyring.reload)


async def _first(*awaitables: Awaitable[object]) -> None:
    """Waits for one of several and cancels the others, unless they are futures that somebody holds."""
    tasks = [asyncio.ensure_future(awaitable) for awaitable in awaitables]
    await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    for task, awaitable in zip(tasks, awaitables, strict=True):
        if task is not awaitable:
            task.cancel()
