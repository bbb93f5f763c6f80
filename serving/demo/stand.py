"""Where the demo puts plans under load: the worker that serves them, and the client's side that asks."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from pathlib import Path

from exegpt_jax.testing import numbers_task as task
from serving.cores import kept_to, split_cores
from serving.demo.lengths import MAX_TOKENS
from serving.demo.messages import Figures
from serving.demo.process import Worker
from serving.load import LoadRequest, LoadResult, run_load_async

_TIMEOUT_S = 60.0
# Of requests in flight: enough phases to judge a profile by.
_TRY_WAVES = 8
# Nobody asks for these otherwise.
_UNCOUNTED = 10**8


class Stand:
    """One worker, one client.

    Args:
      worker: serves.
      loop: of the client's side.
      directory: of the model.
      in_flight: requests at a time.
    """

    def __init__(self, worker: Worker, loop: asyncio.Runner, directory: Path, in_flight: int) -> None:
        self._worker, self._loop, self._directory = worker, loop, directory
        self.in_flight = in_flight
        self._address = ""

    def try_out(self, plan: Path, profile: Path | None) -> Figures:
        """What the engine measures of a plan under requests that are not counted."""
        self.begin(plan, profile)
        self.send(range(_UNCOUNTED, _UNCOUNTED + _TRY_WAVES * self.in_flight))
        return self._worker.stop()

    def begin(self, plan: Path, profile: Path | None) -> str:
        """Has the plan served, with nothing measured yet, behind a wave that paid for what is cold.

        Args:
          plan: its file.
          profile: that it was made from; None where it was made from none.

        Returns the address."""
        flags = [f"--model={self._directory}", f"--plan={plan}"]
        self._address = self._worker.serve(*flags, *([] if profile is None else [f"--profile={profile}"]))
        self.send(range(_UNCOUNTED, _UNCOUNTED + self.in_flight))
        self._worker.stop()
        return self._worker.again()

    def send(self, numbers: Sequence[int], on_result: Callable[[LoadResult], None] | None = None) -> list[LoadResult]:
        """Asks for these numbers in words."""
        asked = [LoadRequest(task.prompt(number), {"max_tokens": MAX_TOKENS}) for number in numbers]
        load = run_load_async(
            self._address, asked, concurrency=self.in_flight, timeout_s=_TIMEOUT_S, one_call=True, on_result=on_result
        )
        with kept_to(split_cores().wire):
            return self._loop.run(load)

    def end(self) -> Figures:
        """What the engine measured since `begin`."""
        return self._worker.stop()
