"""Chat templates: the model's own words, in a sandbox, under a size cap."""

from __future__ import annotations

import time

import pytest

from exegpt_jax.testing.tiny_text import CHAT_TEMPLATE
from exegpt_jax.text.chat import ChatTemplate

SPECIAL = {"bos_token": "<s>", "eos_token": "</s>"}
USER = [{"role": "user", "content": "hi"}]


def test_renders_a_conversation() -> None:
    messages = [*USER, {"role": "assistant", "content": [{"type": "text", "text": "yes"}]}, *USER]
    expected = "<s><|user|>hi</s><|assistant|>yes</s><|user|>hi</s>"
    template = ChatTemplate(CHAT_TEMPLATE, SPECIAL)
    assert template.render(messages) == expected + "<|assistant|>"
    assert template.render(messages, add_generation_prompt=False) == expected


def test_helpers_that_templates_expect() -> None:
    source = "{{ {'b': 1, 'a': '<'} | tojson }} {{ strftime_now('%Y') | length }}"
    assert ChatTemplate(source).render(USER) == '{"b": 1, "a": "<"} 4'
    assert ChatTemplate("{% for i in [1, 2] %}{{ i }}{% break %}{% endfor %}").render(USER) == "1"


def test_refusal_by_the_template_is_one_line() -> None:
    with pytest.raises(ValueError, match=r"^messages: .*roles are user and assistant$"):
        ChatTemplate(CHAT_TEMPLATE, SPECIAL).render([{"role": "tool", "content": "x"}])


@pytest.mark.parametrize(
    "source",
    [
        "{{ ''.__class__.__mro__ }}",
        "{{ messages.append(1) }}",
        "{{ 'a' * 10**9 }}",
        "{{ [0] * 10**8 }}",
        "{{ 10 ** 100000 }}",
        "{{ '%1000000000d' % 1 }}",
        "{{ range(10**9) | list }}",
        "{% set n = namespace(x='aaaaaaaaaa') %}{% for i in range(60) %}{% set n.x = n.x + n.x %}{% endfor %}{{ n.x }}",
        "{% for i in range(90000) %}{{ messages[0].content * 100 }}{% endfor %}",
        "{{ cycler.__init__.__globals__ }}",
        "{{ missing.field }}",
        "{% macro again() %}{{ again() }}{% endmacro %}{{ again() }}",
    ],
)
def test_the_sandbox_holds_and_is_quick(source: str) -> None:
    template = ChatTemplate(source)
    begin_s = time.monotonic()
    with pytest.raises(ValueError, match=r"^messages: "):
        template.render(USER)
    assert time.monotonic() - begin_s < 5


@pytest.mark.parametrize(
    ("messages", "message"),
    [
        ([], "messages: is not a non-empty list"),
        ("hi", "messages: is not a non-empty list"),
        (["hi"], r"messages\[0\]: is a str"),
        ([{"content": "x"}], r"messages\[0\].role: missing"),
        ([{"role": 3, "content": "x"}], r"messages\[0\].role: is a int"),
        ([{"role": "user"}], r"messages\[0\].content: is neither"),
        ([{"role": "user", "content": [{"type": "image"}]}], r"messages\[0\].content: a part"),
        ([{"role": "user", "content": "x", "tool_calls": []}], r"messages\[0\].tool_calls: unknown field"),
    ],
)
def test_malformed_messages_are_named(messages: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ChatTemplate(CHAT_TEMPLATE, SPECIAL).render(messages)


def test_broken_template_is_named() -> None:
    with pytest.raises(ValueError, match="chat_template: does not compile"):
        ChatTemplate("{% if %}")
