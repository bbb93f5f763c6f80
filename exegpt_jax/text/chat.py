"""A conversation to one prompt, by the model's own chat template.

Templates come from the model directory (the operator), never from a request. They run in jinja2's immutable sandbox
with the helpers that Hugging Face gives them, and under a cap on the size of every intermediate string, because a
sandbox alone lets `'a' * 10**9` run.
"""

from __future__ import annotations

import datetime
import json
from collections.abc import Mapping, Sequence
from typing import NoReturn

import jinja2
import jinja2.ext
import jinja2.sandbox
from jinja2.runtime import Context

MAX_RENDERED_CHARACTERS = 4_000_000
_MAX_EXPONENT = 64


class ChatTemplate:
    """Renders messages with one template."""

    def __init__(self, source: str, special: Mapping[str, str] | None = None) -> None:
        """`special` maps names such as "bos_token" to text. Raises ValueError if the template does not compile."""
        environment = _Environment(trim_blocks=True, lstrip_blocks=True, extensions=[jinja2.ext.loopcontrols])
        environment.filters["tojson"] = _tojson
        environment.globals.update(raise_exception=_raise_exception, strftime_now=_strftime_now)
        try:
            self._template = environment.from_string(source)
        except jinja2.TemplateError as error:
            raise ValueError(f"chat_template: does not compile ({error}); correct the model's template") from error
        self._special = dict(special or {})

    def render(self, messages: object, *, add_generation_prompt: bool = True) -> str:
        """The prompt for `messages`: a list of {"role", "content"}, content a string or a list of text parts.

        Raises ValueError with one line if the messages are not that, or the template refuses them."""
        checked = _check_messages(messages)
        pieces: list[str] = []
        size = 0
        try:
            for piece in self._template.generate(
                messages=checked, add_generation_prompt=add_generation_prompt, **self._special
            ):
                size += len(piece)
                if size > MAX_RENDERED_CHARACTERS:
                    raise ValueError(f"messages: the rendered prompt exceeds {MAX_RENDERED_CHARACTERS} characters")
                pieces.append(piece)
        # Whatever a template does wrong (types, missing names, its own raise_exception) is its refusal of the messages.
        except (jinja2.TemplateError, TypeError, KeyError, IndexError, ArithmeticError, AttributeError) as error:
            raise ValueError(f"messages: the model's chat template refuses them: {error}") from error
        except RecursionError as error:
            raise ValueError("messages: the model's chat template recurses without end") from error
        return "".join(pieces)


class _Environment(jinja2.sandbox.ImmutableSandboxedEnvironment):
    """The sandbox, with a cap where an operator makes a long text or number out of short ones."""

    intercepted_binops = frozenset({"*", "+", "%", "**"})

    def call_binop(self, context: Context, operator: str, left: object, right: object) -> object:
        if operator == "**" and not (_is_small(left) and _is_small(right)):
            raise jinja2.sandbox.SecurityError(f"power of {left!r:.20} by {right!r:.20}")
        if operator == "%" and isinstance(left, str | bytes):
            raise jinja2.sandbox.SecurityError("text formatting with %")
        if operator == "*" and _repeated(left, right) + _repeated(right, left) > MAX_RENDERED_CHARACTERS:
            raise jinja2.sandbox.SecurityError("repetition makes too long a value")
        if operator == "+" and _length(left) + _length(right) > MAX_RENDERED_CHARACTERS:
            raise jinja2.sandbox.SecurityError("concatenation makes too long a value")
        return super().call_binop(context, operator, left, right)


def _is_small(value: object) -> bool:
    return isinstance(value, int | float) and abs(value) <= _MAX_EXPONENT


def _length(value: object) -> int:
    return len(value) if isinstance(value, str | bytes | list | tuple) else 0


def _repeated(value: object, times: object) -> int:
    return _length(value) * max(times, 0) if isinstance(times, int) else 0


def _check_messages(messages: object) -> list[dict[str, str]]:
    if not isinstance(messages, Sequence) or isinstance(messages, str | bytes) or not messages:
        raise ValueError('messages: is not a non-empty list of {"role", "content"}')
    checked = []
    for index, message in enumerate(messages):
        if not isinstance(message, Mapping):
            raise ValueError(f"messages[{index}]: is a {type(message).__name__}, not an object with role and content")
        unknown = set(message) - {"role", "content", "name"}
        if unknown:
            raise ValueError(
                f"messages[{index}].{min(map(str, unknown))}: unknown field; known are role, content, name"
            )
        for name in ("role", "name"):
            if not isinstance(message.get(name, ""), str):
                raise ValueError(f"messages[{index}].{name}: is a {type(message[name]).__name__}, not text")
        if not message.get("role"):
            raise ValueError(f"messages[{index}].role: missing; give system, user or assistant")
        checked.append({**message, "content": _content(message.get("content"), index)})
    return checked


def _content(content: object, index: int) -> str:
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        raise ValueError(f"messages[{index}].content: is neither text nor a list of text parts")
    for part in content:
        if not (isinstance(part, dict) and part.get("type") == "text" and isinstance(part.get("text"), str)):
            raise ValueError(f'messages[{index}].content: a part is not {{"type": "text", "text": ...}}')
    return "".join(part["text"] for part in content)


def _raise_exception(message: object) -> NoReturn:
    raise jinja2.TemplateError(str(message))


def _strftime_now(pattern: str) -> str:
    return datetime.datetime.now().strftime(pattern)


def _tojson(
    value: object,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """JSON without jinja2's HTML escapes, which the models have not seen."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)
