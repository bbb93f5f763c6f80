"""What the front end may ask about a run, by name; answers are plain JSON values."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping

from exegpt_jax.runner.loop import Runner
from serving.beside import beside


def _beside(runner: Runner, arguments: Mapping[str, object]) -> object:
    return beside(runner.plan, runner).fields()


def _phases(runner: Runner, arguments: Mapping[str, object]) -> object:
    """Timeline entries of `count` phases from the middle of the run."""
    entries = list(runner.timeline)
    phases = sorted({entry.phase for entry in entries})
    count = int(str(arguments["count"]))
    shown = set(phases[max(0, (len(phases) - count) // 2) :][:count])
    return [dataclasses.asdict(entry) for entry in entries if entry.phase in shown]


QUESTIONS: dict[str, Callable[[Runner, Mapping[str, object]], object]] = {"beside": _beside, "phases": _phases}


def answer(runner: Runner | None, about: str, arguments: Mapping[str, object]) -> object:
    """Raises ValueError with one line where there is no such question, or nobody to ask."""
    if about not in QUESTIONS:
        raise ValueError(f"about: {about!r} is no question; ask one of {', '.join(QUESTIONS)}")
    if runner is None:
        raise ValueError("engine: nothing runs; ask again when it does")
    return QUESTIONS[about](runner, arguments)
