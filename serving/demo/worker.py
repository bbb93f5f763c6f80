"""The demo's server process: a gRPC front end over an engine process, for one plan after the other.

    python -m serving.demo.worker

Orders come on standard input (`serving.demo.messages`); their end ends both processes, which so never outlive the
client.
"""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import IO, cast

from serving.cores import Cores, kept_to, split_cores
from serving.demo.messages import Figures, Message, parse_order
from serving.doors import generation, health
from serving.engine.link import EngineLink
from serving.frontend import Frontend
from serving.life_cycle import text_of
from serving.server import ServerOptions, make_server

_SHOWN_PHASES = 10
_MAX_REQUESTS = 1024


def main() -> int:
    # The messages keep standard output to themselves, whatever a library may print.
    out = os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding="utf-8")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    cores = split_cores()
    try:
        with kept_to(cores.wire):
            asyncio.run(_serve(out, cores))
    except (ValueError, OSError) as error:
        Message("failed", str(error)).send(out)
        return 1
    return 0


async def _serve(out: IO[str], cores: Cores) -> None:
    frontend = Frontend(_MAX_REQUESTS)
    states = health.Health([generation.SERVICE_NAME])
    server, address = make_server(ServerOptions("127.0.0.1:0"), frontend, states)
    await server.start()
    link = EngineLink(frontend.deliver, states.set_serving, on_line=_say(out), cores=sorted(cores.engine))
    try:
        while line := (await asyncio.to_thread(sys.stdin.readline)).strip():
            order = parse_order(line)
            if order.do == "stop":
                Message("stopped", figures=await _stop(link)).send(out)
                continue
            if order.do == "serve":
                plan = await link.build(order.flags)
                (model,) = (flag.partition("=")[2] for flag in order.flags if flag.startswith("--model="))
                frontend.open(text_of(Path(model), plan), link)
            else:
                await link.again()
            Message("serving", address).send(out)
    finally:
        await link.close()
        states.close()
        await server.stop(1.0)


def _say(out: IO[str]) -> Callable[[str], None]:
    return lambda line: Message("say", line).send(out)


async def _stop(link: EngineLink) -> Figures:
    """Ends what runs; what it measured."""
    entries = cast("list[dict[str, object]]", await link.ask("phases", {"count": _SHOWN_PHASES}))
    stopped = await link.stop()
    if stopped is None:
        raise ValueError("engine: it died; what it printed says why")
    return Figures(dict(stopped.figures), cast(float, stopped.figures["latency_s"]), stopped.lines, tuple(entries))


if __name__ == "__main__":
    sys.exit(main())
