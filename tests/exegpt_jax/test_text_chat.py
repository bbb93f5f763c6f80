"""Chat templates: the model's own words, in a sandbox, under a size cap."""

from __future__ import annotations

import concurrent.futures
import gc
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


ENDLESS = "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}"


@pytest.mark.parametrize(
    "source",
    [
        # Loops that print nothing, and single calls that no check between steps can interrupt.
        ENDLESS,
        "{{ messages[0].content | center(10**9) | length }}",
        "{{ '{:1000000000}'.format(messages[0].content) | length }}",
        "{{ ('a' * 3000000) | replace('a', 'b' * 3000000) | length }}",
        "{{ ('a ' * 1500000) | wordwrap(1) | wordwrap(1) | wordwrap(1) | wordwrap(1) | length }}",
    ],
)
def test_what_never_ends_is_ended_and_the_next_one_is_answered(source: str) -> None:
    template = ChatTemplate("{% if messages | length > 1 %}" + source + "{% endif %}{{ messages[0].content }}")
    for _ in range(2):
        with pytest.raises(ValueError, match=r"^messages: the model's chat template (takes|needs too much|refuses)"):
            template.render(USER * 2)
        assert template.render(USER) == "hi"


def test_a_template_that_never_compiles_is_named() -> None:
    with pytest.raises(ValueError, match=r"^chat_template: does not compile"):
        ChatTemplate("{{ 'a' | center(10**10) }}{{ 2 ** 3 ")
    with pytest.raises(ValueError, match=r"^chat_template: does not compile"):
        ChatTemplate("(" * 100 + "{{" + "(" * 5000 + "1" + ")" * 5000 + "}}")


def test_the_process_ends_with_its_template_and_comes_back_when_it_is_killed() -> None:
    template = ChatTemplate(CHAT_TEMPLATE, SPECIAL)
    process = template._renderer._process
    expected = template.render(USER)
    process.terminate()
    process.wait(20)
    assert template.render(USER) == expected
    second = template._renderer._process
    assert second.pid != process.pid
    del template
    gc.collect()
    assert second.poll() is not None


def test_threads_share_one_template() -> None:
    template = ChatTemplate(CHAT_TEMPLATE, SPECIAL)
    texts = [f"\ud800 {number} \U0001f600" for number in range(40)]
    with concurrent.futures.ThreadPoolExecutor(8) as threads:
        got = list(threads.map(lambda text: template.render([{"role": "user", "content": text}]), texts))
    assert got == [f"<s><|user|>{text}</s><|assistant|>" for text in texts]


def test_too_many_or_too_long_messages_do_not_reach_the_template() -> None:
    template = ChatTemplate(CHAT_TEMPLATE, SPECIAL)
    with pytest.raises(ValueError, match=r"^messages: has 10001 of them"):
        template.render(USER * 10_001)
    with pytest.raises(ValueError, match=r"^messages: their contents exceed 4000000 characters"):
        template.render([{"role": "user", "content": "a" * 4_000_001}])


def test_broken_template_is_named() -> None:
    with pytest.raises(ValueError, match="chat_template: does not compile"):
        ChatTemplate("{% if %}")
