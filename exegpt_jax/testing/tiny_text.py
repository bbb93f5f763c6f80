"""A tokenizer small enough for tests, with everything a big one has: bytes, merges, special tokens, a chat template.

Token ids: 0 `<s>`, 1 `</s>`, 2 `<|user|>`, 3 `<|assistant|>`, then 256 bytes, then merges.
"""

from __future__ import annotations

import json
from pathlib import Path

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors, trainers

BOS_ID = 0
EOS_ID = 1
SPECIAL_TOKENS = ("<s>", "</s>", "<|user|>", "<|assistant|>")
SMALLEST_VOCABULARY = 256 + len(SPECIAL_TOKENS)

CHAT_TEMPLATE = """{{ bos_token }}
{%- for message in messages %}
{%- if message.role not in ('user', 'assistant') %}{{ raise_exception('roles are user and assistant') }}{% endif %}
{{- '<|' ~ message.role ~ '|>' ~ message.content ~ eos_token }}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"""

_CORPUS = (
    "the quick brown fox jumps over the lazy dog",
    "a stop string may begin in one token and end in another",
    "caf\u00e9 na\u00efve \u65e5\u672c\u8a9e \U0001f600 \U0001f680",
)


def write_tiny_text(directory: Path, *, vocab_size: int = 320) -> None:
    """Writes tokenizer.json, tokenizer_config.json and generation_config.json with at most `vocab_size` tokens."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[AddedToken(token, special=True) for token in SPECIAL_TOKENS],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_CORPUS * 4, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", BOS_ID)])
    tokenizer.save(str(directory / "tokenizer.json"))
    settings = {"bos_token": "<s>", "eos_token": "</s>", "chat_template": CHAT_TEMPLATE}
    (directory / "tokenizer_config.json").write_text(json.dumps(settings))
    (directory / "generation_config.json").write_text(json.dumps({"bos_token_id": BOS_ID, "eos_token_id": EOS_ID}))
