"""One request as users write it -- prompt or messages, and parameters -- made ready for the Runner.

`ModelText` holds what a model directory knows about text. `prepare` is the only way from a user's words to token ids
and `Parameters`; the door, the file pipeline and `LLM` differ only in how they collect the fields.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path

from exegpt_jax.text import parameters
from exegpt_jax.text.chat import ChatTemplate
from exegpt_jax.text.model_files import read_text_files
from exegpt_jax.text.parameters import Parameters
from exegpt_jax.text.tokenizer import Tokenizer

MAX_PROMPT_CHARACTERS_PER_TOKEN = 64
"""A text longer than this per token that fits is refused before it is tokenised."""


@dataclasses.dataclass(frozen=True)
class Prepared:
    """A checked request: prompt as token ids, parameters resolved."""

    prompt_ids: tuple[int, ...]
    parameters: Parameters


@dataclasses.dataclass(frozen=True)
class ModelText:
    """What a model directory knows about text, and how much of it the engine has room for.

    Attributes:
      tokenizer: None where the directory has no tokenizer.json: then prompts are token ids and answers have no text.
      chat: None where the model has no chat template.
      eos_ids: tokens that end a sequence.
      defaults: the model's default sampling.
      vocab_size: token ids lie below it.
      max_prompt_tokens: longest prompt.
      cache_tokens: longest prompt plus output.
    """

    tokenizer: Tokenizer | None
    chat: ChatTemplate | None
    eos_ids: tuple[int, ...]
    defaults: Mapping[str, float]
    vocab_size: int
    max_prompt_tokens: int
    cache_tokens: int

    @classmethod
    def load(cls, directory: Path, *, vocab_size: int, max_prompt_tokens: int, cache_tokens: int) -> ModelText:
        """Reads the directory. Raises ValueError with one line for a broken file."""
        files = read_text_files(directory)
        has_tokenizer = (directory / "tokenizer.json").is_file()
        tokenizer = Tokenizer(directory, files) if has_tokenizer else None
        eos_ids = files.eos_ids if tokenizer is None else tokenizer.eos_ids
        return cls(
            tokenizer=tokenizer,
            chat=ChatTemplate(files.chat_template, files.special) if files.chat_template is not None else None,
            eos_ids=tuple(token for token in eos_ids if token < vocab_size),
            defaults=files.sampling,
            vocab_size=vocab_size,
            max_prompt_tokens=max_prompt_tokens,
            cache_tokens=cache_tokens,
        )

    def prepare(self, fields: Mapping[str, object]) -> Prepared:
        """Checks one request: `prompt` (text or token ids) or `messages`, and parameters; None counts as absent.

        Raises ValueError with one line that names the field, its value and what is allowed."""
        given = {name: value for name, value in fields.items() if value is not None}
        prompt = given.pop("prompt", None)
        messages = given.pop("messages", None)
        if (prompt is None) == (messages is None):
            raise ValueError("prompt: give exactly one of prompt and messages")
        ids = self._prompt_ids(prompt) if messages is None else self._chat_ids(messages)
        if not 1 <= len(ids) <= self.max_prompt_tokens:
            raise ValueError(f"prompt: has {len(ids)} tokens; 1 to {self.max_prompt_tokens} fit (max_prompt_tokens)")
        resolved = parameters.resolve(
            given,
            defaults=self.defaults,
            eos_ids=self.eos_ids,
            vocab_size=self.vocab_size,
            room_tokens=self.cache_tokens - len(ids),
        )
        if resolved.stop and self.tokenizer is None:
            raise ValueError("stop: this model directory has no tokenizer.json to find text with; give stop_token_ids")
        return Prepared(ids, resolved)

    def _prompt_ids(self, prompt: object) -> tuple[int, ...]:
        if not isinstance(prompt, str):
            return parameters.token_ids(prompt, "prompt", self.vocab_size)
        return self._encode(prompt, special_tokens=True)

    def _chat_ids(self, messages: object) -> tuple[int, ...]:
        if self.chat is None:
            raise ValueError("messages: this model has no chat template; give a prompt")
        return self._encode(self.chat.render(messages), special_tokens=False)

    def _encode(self, text: str, *, special_tokens: bool) -> tuple[int, ...]:
        if self.tokenizer is None:
            raise ValueError("prompt: this model directory has no tokenizer.json; give token ids")
        most = self.max_prompt_tokens * MAX_PROMPT_CHARACTERS_PER_TOKEN
        if len(text) > most:
            raise ValueError(f"prompt: has {len(text)} characters; at most {most} are tokenised (max_prompt_tokens)")
        ids = self.tokenizer.encode(text, special_tokens=special_tokens)
        # A tokenizer may know more tokens than the model has rows for (added ones nobody trained).
        return parameters.token_ids(ids, "prompt", self.vocab_size)
