"""Chat templates in jinja2's immutable sandbox, with the helpers that Hugging Face gives them and caps on sizes.

A sandbox alone lets `'a' * 10**9` run. What these caps do not catch, in time or in memory, ends the process that runs
this (`exegpt_jax.text.render_process`).
"""

from __future__ import annotations

import datetime
import json
from collections.abc import Mapping
from typing import NoReturn

import jinja2
import jinja2.ext
import jinja2.sandbox
from jinja2.runtime import Context

MAX_RENDERED_CHARACTERS = 4_000_000
_MAX_EXPONENT = 64


class Refused(Exception):
    """The template does not compile, or does not render what it was given; one line says why."""


def compiled(source: str) -> jinja2.Template:
    """Raises Refused."""
    environment = _Environment(trim_blocks=True, lstrip_blocks=True, extensions=[jinja2.ext.loopcontrols])
    environment.filters["tojson"] = _tojson
    environment.globals.update(raise_exception=_raise_exception, strftime_now=_strftime_now)
    try:
        return environment.from_string(source)
    except jinja2.TemplateError as error:
        raise Refused(str(error)) from error
    except (MemoryError, RecursionError) as error:
        raise Refused(f"{type(error).__name__}") from error


def rendered(template: jinja2.Template, variables: Mapping[str, object]) -> str:
    """Raises Refused."""
    pieces: list[str] = []
    size = 0
    try:
        for piece in template.generate(**variables):
            size += len(piece)
            if size > MAX_RENDERED_CHARACTERS:
                raise Refused(f"the rendered prompt exceeds {MAX_RENDERED_CHARACTERS} characters")
            pieces.append(piece)
    except Refused:
        raise
    except RecursionError as error:
        raise Refused("the model's chat template recurses without end") from error
    except MemoryError as error:
        raise Refused("the model's chat template needs too much memory") from error
    # Whatever else a template does wrong (types, missing names, its own raise_exception) is its refusal of them.
    except Exception as error:
        raise Refused(f"the model's chat template refuses them: {error}") from error
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
