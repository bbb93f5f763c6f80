"""A model directory as a Python object: prompts in, answers out, under one schedule.

with LLM("path/to/model", policy="rra") as llm:
    for completion in llm.generate(["4217 ->", "38 ->"], max_tokens=32):
        print(completion.text)
    for piece in llm.stream("4217 ->"):
        print(piece, end="")
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType

from exegpt_jax.engine.api import EngineError
from exegpt_jax.runner.build import build
from exegpt_jax.session import Completion, Conversation, Failure, Session, complete_in_order
from exegpt_jax.text.prompts import ModelText
from solver.plan.plan import Plan

Prompt = str | Sequence[int] | Mapping[str, object]
"""Text, token ids, or an object with "prompt" or "messages" and parameters of its own."""


class LLM:
    """One model behind one schedule, loaded and compiled when made. Safe to use from several threads.

    Attributes:
      plan: the schedule that runs, with everything that was chosen for it.
    """

    def __init__(
        self,
        directory: str | Path,
        *,
        policy: str = "rra",
        encode_batch: int | None = None,
        decode_iterations: int | None = None,
        decode_batch: int | None = None,
        max_rows: int | None = None,
        token_budget: int | None = None,
        tensor: int = 1,
        dtype: str | None = None,
        cache_tokens: int | None = None,
        max_prompt_tokens: int | None = None,
        memory_fraction: float = 0.9,
        compilation_cache: str | Path | None = None,
        progress: Callable[[str], None] | None = None,
    ) -> None:
        """The schedule's control variables (`solver.plan.schedule.Schedule`); None lets a short measurement choose.

        Args:
          directory: Hugging Face model directory or Orbax checkpoint.
          dtype: "float32" or "bfloat16".
          cache_tokens: positions allocated per row, prompt plus output.
          max_prompt_tokens: longest prompt.
          memory_fraction: share of a device's memory to use.
          compilation_cache: directory that keeps compiled programs between runs.
          progress: called with one line at a time while loading, measuring and compiling.

        Raises:
          ValueError: one line that names what to change.
        """
        built = build(
            Path(directory),
            policy=policy,
            encode_batch=encode_batch,
            decode_iterations=decode_iterations,
            decode_batch=decode_batch,
            max_rows=max_rows,
            token_budget=token_budget,
            tensor=tensor,
            dtype=dtype,
            cache_tokens=cache_tokens,
            max_prompt_tokens=max_prompt_tokens,
            memory_fraction=memory_fraction,
            compilation_cache=None if compilation_cache is None else Path(compilation_cache),
            progress=progress,
        )
        self.plan: Plan = built.plan
        self._text = ModelText.load(
            Path(directory),
            vocab_size=built.spec.vocab_size,
            max_prompt_tokens=built.plan.max_prompt_tokens,
            cache_tokens=built.plan.cache_tokens,
        )
        self._session = Session(built.plan, built.executor, self._text)

    def generate(self, prompts: Sequence[Prompt], **parameters: object) -> list[Completion]:
        """Answers prompts together, in their order.

        Args:
          prompts: text, token ids, or objects whose own parameters win over `parameters`.
          parameters: for all of them: max_tokens, temperature, stop, ... (`exegpt_jax.text.parameters`).

        Raises:
          ValueError: one line that names the prompt's index, the field and its range; nothing has run then.
          EngineError: the engine lost a request.
        """
        if isinstance(prompts, str):
            raise ValueError("prompts: is one text; give a list of prompts")
        prepared = []
        for index, prompt in enumerate(prompts):
            try:
                prepared.append((index, self._text.prepare(_fields(prompt, parameters))))
            except ValueError as error:
                raise ValueError(f"prompts[{index}]: {error}") from error
        completions = []
        for index, outcome in complete_in_order(self._session, prepared, window=max(len(prepared), 1)):
            if isinstance(outcome, Failure):
                raise EngineError(f"prompts[{index}]: {outcome.error}")
            completions.append(outcome)
        return completions

    def stream(self, prompt: Prompt, **parameters: object) -> Iterator[str]:
        """Pieces of one answer's text as they come; leaving early cancels it. Raises as `generate` does."""
        conversation = self._session.conversation()
        conversation.ask(self._text.prepare(_fields(prompt, parameters)))
        return _pieces(conversation)

    def close(self) -> None:
        """Stops the engine; requests under way are lost."""
        self._session.close()

    def __enter__(self) -> LLM:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _pieces(conversation: Conversation) -> Iterator[str]:
    """The text of a conversation's only request."""
    try:
        while True:
            for _, found in conversation.read(conversation.wait()):
                if isinstance(found, Failure):
                    raise EngineError(found.error)
                if isinstance(found, Completion):
                    return
                if found.text:
                    yield found.text
    finally:
        conversation.cancel_all()


def _fields(prompt: Prompt, parameters: Mapping[str, object]) -> dict[str, object]:
    own = prompt if isinstance(prompt, Mapping) else {"prompt": prompt}
    return {**parameters, **own}
