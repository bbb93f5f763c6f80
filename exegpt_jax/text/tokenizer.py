"""Text to token ids and back, with the model's own `tokenizer.json`.

`DecodeStream` turns tokens into text as they arrive: characters whose bytes are spread over several tokens are held
back until they are whole, and what is left at the end is flushed. Tokens go through it one by one, so the text does not
depend on how a schedule groups them.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import tokenizers
from tokenizers import decoders

from exegpt_jax.text.model_files import TextFiles, read_text_files

# A character has at most four bytes, so more held tokens than this are rubbish (or skipped special tokens).
_MOST_HELD_TOKENS = 16
_CONTEXT_TOKENS = 4


class Tokenizer:
    """The tokenizer of a model directory. Safe to use from several threads."""

    def __init__(self, directory: Path, files: TextFiles | None = None) -> None:
        """Raises ValueError with one line if the directory has no readable tokenizer.json."""
        path = Path(directory) / "tokenizer.json"
        if not path.is_file():
            raise ValueError(
                f"{path}: missing; save one with transformers' AutoTokenizer, or give token ids as prompts"
            )
        try:
            self._tokenizer = tokenizers.Tokenizer.from_file(str(path))
        # The library raises bare Exception for a file it cannot parse.
        except Exception as error:
            raise ValueError(f"{path}: is no tokenizer ({error}); replace the file") from error
        self._tokenizer.no_padding()
        self._tokenizer.no_truncation()
        files = read_text_files(Path(directory)) if files is None else files
        bos = files.special.get("bos_token")
        self._forced_bos = self._tokenizer.token_to_id(bos) if bos is not None and files.add_bos_token else None
        eos = files.special.get("eos_token")
        eos_id = self._tokenizer.token_to_id(eos) if eos is not None else None
        self.eos_ids: tuple[int, ...] = files.eos_ids or (() if eos_id is None else (eos_id,))
        self.bos_id: int | None = self._tokenizer.token_to_id(bos) if bos is not None else None
        self.vocab_size: int = self._tokenizer.get_vocab_size(with_added_tokens=True)

    def encode(self, text: str, *, special_tokens: bool = True) -> tuple[int, ...]:
        """Token ids. `special_tokens` adds what the model puts around a prompt; a chat template writes its own.

        Raises ValueError if `text` is not valid Unicode (a lone surrogate, from JSON escapes)."""
        try:
            ids = self._tokenizer.encode(text, add_special_tokens=special_tokens).ids
        except (UnicodeEncodeError, TypeError) as error:
            raise ValueError("prompt: is not valid Unicode text (a lone surrogate)") from error
        if special_tokens and self._forced_bos is not None and (not ids or ids[0] != self._forced_bos):
            ids = [self._forced_bos, *ids]
        return tuple(ids)

    def decode(self, ids: Sequence[int], *, skip_special_tokens: bool = True) -> str:
        text: str = self._tokenizer.decode(list(ids), skip_special_tokens=skip_special_tokens)
        return text

    def stream(self, *, skip_special_tokens: bool = True) -> DecodeStream:
        return DecodeStream(self._tokenizer, skip_special_tokens)


class DecodeStream:
    """One request's text so far: feed tokens with `push`, end with `flush`."""

    def __init__(self, tokenizer: tokenizers.Tokenizer, skip_special_tokens: bool) -> None:
        self._tokenizer = tokenizer
        self._skip = skip_special_tokens
        self._stream = decoders.DecodeStream(skip_special_tokens=skip_special_tokens)
        self._context: list[int] = []  # last tokens whose text is out: they decide spaces and joins
        self._held: list[int] = []  # tokens whose text is not out yet

    def push(self, token_id: int) -> str:
        """Text that became whole with this token, often empty."""
        self._held.append(token_id)
        try:
            text = self._stream.step(self._tokenizer, token_id)
        # The library raises bare Exception when bytes already decoded turn out to be part of something invalid.
        except Exception:
            return self._restart()
        if text is None:
            return self._restart() if len(self._held) >= _MOST_HELD_TOKENS else ""
        self._release()
        return str(text)

    def flush(self) -> str:
        """The held tail: replacement characters stand where a character stayed incomplete."""
        return self._restart() if self._held else ""

    def _restart(self) -> str:
        """Puts out what is held as it is and begins a new stream behind it."""
        before = self._decode(self._context)
        text = self._decode([*self._context, *self._held])
        text = text[len(before) :] if text.startswith(before) else self._decode(self._held)
        self._release()
        self._stream = decoders.DecodeStream(ids=self._context, skip_special_tokens=self._skip)
        return text

    def _release(self) -> None:
        self._context = [*self._context, *self._held][-_CONTEXT_TOKENS:]
        self._held = []

    def _decode(self, ids: list[int]) -> str:
        text: str = self._tokenizer.decode(ids, skip_special_tokens=self._skip)
        return text
