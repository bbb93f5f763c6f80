"""What the front end may ask about a run, by name; answers are plain JSON values."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from exegpt_jax.runner.loop import Runner
from serving.beside import beside


def _beside(runner: Runner, arguments: Mapping[str, object]) -> object:
    return beside(runner.plan, runner).fields()


QUESTIONS: dict[str, Callable[[Runner, Mapping[str, object]], object]] = {"beside": _beside}


def answer(runner: Runner | None, about: str, arguments: Mapping[str, object]) -> object:
    """Raises ValueError with one line where there is no such question, or nobody to ask."""
    if about not in QUESTIONS:
        raise ValueError(f"about: {about!r} is no question; ask one of {', '.join(QUESTIONS)}")
    if runner is None:
        raise ValueError("engine: nothing runs; ask again when it does")
    return QUESTIONS[about](runner, arguments)
