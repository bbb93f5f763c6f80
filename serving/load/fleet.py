"""The processes of a load as the command holds them: started together, listened to, their results put side by side.

Nothing is averaged: every result of every process is kept, and figures are computed once, over all of them.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
import os
import queue
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from typing import IO, Any

from serving.load.messages import Job, ProcessReport, Sample, job_line

_START_IN_S = 0.1
# Seconds of a core for a request and for each of its messages, by tests/benchmarks/load_limit.py.
_OWN_CALL_S = (4.5e-4, 5e-5)
_ONE_CALL_S = (2e-4, 2.5e-5)
_CPU_SHARE = 0.4
_UNKNOWN_TOKENS = 128.0
_CONCURRENCY_PER_PROCESS = 256
_SHOW_EVERY_S = 0.2
_PATIENCE_S = 10.0


@dataclasses.dataclass(frozen=True)
class Outcome:
    """All that was measured.

    Attributes:
      samples: of every process, by index.
      reports: of each process, in order; None of one that was lost.
      lost: why the load ended before its time; None where it did not.
      interrupted: by Ctrl-C.
    """

    samples: tuple[Sample, ...]
    reports: tuple[ProcessReport | None, ...]
    lost: str | None
    interrupted: bool


def processes_for(
    rate_rps: float | None, mean_output_tokens: float | None, concurrency: int | None, *, one_call: bool
) -> int:
    """How many are enough to stay well below a full core each, at most one a core.

    Args:
      rate_rps: requests a second; None of a closed loop.
      mean_output_tokens: None where nobody knows.
      concurrency: in flight, of a closed loop.
      one_call: the requests of a process share one.
    """
    cores = len(os.sched_getaffinity(0))
    if rate_rps is None:
        wanted = (concurrency or 1) / _CONCURRENCY_PER_PROCESS
    elif math.isinf(rate_rps):
        wanted = float(cores)
    else:
        request_s, message_s = _ONE_CALL_S if one_call else _OWN_CALL_S
        # At worst each message brings one token.
        messages = _UNKNOWN_TOKENS if mean_output_tokens is None else mean_output_tokens
        wanted = rate_rps * (request_s + message_s * messages) / _CPU_SHARE
    return max(1, min(cores, math.ceil(wanted)))


def split(whole: Job, processes: int) -> list[Job]:
    """The shares of `processes` jobs that together do what `whole` says: requests are dealt in turn.

    In a closed loop no more processes are made than requests are in flight.
    """
    if whole.at_s is None:
        processes = min(processes, whole.concurrency)

    def dealt(total: int, place: int) -> int:
        return total // processes + (place < total % processes)

    return [
        dataclasses.replace(
            whole,
            first=place,
            step=processes,
            at_s=None if whole.at_s is None else whole.at_s[place::processes],
            count=None if whole.count is None else dealt(whole.count, place),
            concurrency=dealt(whole.concurrency, place),
            warmup=dealt(whole.warmup, place),
        )
        for place in range(processes)
    ]


def run_fleet(jobs: Sequence[Job], show: Callable[[Sequence[Sample], float], None]) -> Outcome:
    """Runs each job in a process of its own, all from one start on.

    Args:
      jobs: as `split` makes them.
      show: called a few times a second with what has come so far and the seconds since the start.

    Raises:
      ValueError: one line: why the load could not begin.
    """
    with contextlib.ExitStack() as stack:
        news: queue.SimpleQueue[tuple[int, list[Any] | None]] = queue.SimpleQueue()
        members = [stack.enter_context(_Member(place, job, news)) for place, job in enumerate(jobs)]
        for _ in members:
            place, message = news.get()
            if message is None or message[0] != "ready":
                raise ValueError(message[1] if message else f"load: a process failed: {members[place].last_words()}")
        start_s = time.monotonic() + _START_IN_S
        for member in members:
            member.send(f"{start_s!r}\n")
        return _collect(members, news, start_s, show)


def _collect(
    members: Sequence[_Member],
    news: queue.SimpleQueue[tuple[int, list[Any] | None]],
    start_s: float,
    show: Callable[[Sequence[Sample], float], None],
) -> Outcome:
    samples: list[Sample] = []
    reports: list[ProcessReport | None] = [None] * len(members)
    broken: str | None = None
    running, interrupted, until_s, shown_s = set(range(len(members))), False, math.inf, 0.0
    while running and time.monotonic() < until_s:
        try:
            with contextlib.suppress(queue.Empty):
                place, message = news.get(timeout=_SHOW_EVERY_S)
                if message is None:
                    running.discard(place)
                    if reports[place] is None and not interrupted:
                        broken = f"process {place} ended early: {members[place].last_words()}"
                elif message[0] == "sample":
                    samples.append(Sample(*message[1:]))
                else:
                    reports[place] = ProcessReport(*message[1:])
            now_s = time.monotonic()
            if now_s - shown_s >= _SHOW_EVERY_S:
                show(samples, now_s - start_s)
                shown_s = now_s
        except KeyboardInterrupt:
            if interrupted:
                raise
            interrupted, until_s = True, time.monotonic() + _PATIENCE_S
            for member in members:
                member.stop()
    samples.sort(key=lambda sample: sample.index)
    lost = broken or next((report.lost for report in reports if report is not None and report.lost), None)
    return Outcome(tuple(samples), tuple(reports), lost, interrupted)


class _Member:
    """One process. Its standard error is kept back and told only if it fails."""

    def __init__(self, place: int, job: Job, news: queue.SimpleQueue[tuple[int, list[Any] | None]]) -> None:
        self._place, self._job, self._news = place, job, news

    def __enter__(self) -> _Member:
        self._errors: IO[str] = tempfile.TemporaryFile("w+", encoding="utf-8")
        self._process = subprocess.Popen(
            [sys.executable, "-m", "serving.load.worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
            encoding="utf-8",
            # Ctrl-C is the command's to handle; a process ends when its input does.
            start_new_session=True,
        )
        threading.Thread(target=self._read, daemon=True).start()
        self.send(job_line(self._job))
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()
        try:
            self._process.wait(timeout=1)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._errors.close()

    def send(self, line: str) -> None:
        # One that has ended says why in its last message.
        with contextlib.suppress(BrokenPipeError):
            assert self._process.stdin is not None
            self._process.stdin.write(line)
            self._process.stdin.flush()

    def stop(self) -> None:
        """It tells what it has measured and ends."""
        with contextlib.suppress(BrokenPipeError):
            assert self._process.stdin is not None
            self._process.stdin.close()

    def last_words(self) -> str:
        self._errors.seek(0)
        return ([line.strip() for line in self._errors if line.strip()] or ["nothing said"])[-1]

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self._news.put((self._place, json.loads(line)))
        self._news.put((self._place, None))
