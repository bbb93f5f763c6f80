"""A conversation to one prompt, by the model's own chat template.

Templates come from the model directory (the operator), never from a request; the messages come from whoever asks. They
meet in a process of their own, which ends when the two together cost too much time or memory.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from exegpt_jax.text.renderer import Renderer
from exegpt_jax.text.sandbox import MAX_RENDERED_CHARACTERS, Refused

MAX_MESSAGES = 10_000


class ChatTemplate:
    """Renders messages with one template; threads may share it."""

    def __init__(self, source: str, special: Mapping[str, str] | None = None) -> None:
        """`special` maps names such as "bos_token" to text. Raises ValueError if the template does not compile."""
        try:
            self._renderer = Renderer(source)
        except Refused as error:
            raise ValueError(f"chat_template: does not compile ({error}); correct the model's template") from error
        self._special = dict(special or {})

    def render(self, messages: object, *, add_generation_prompt: bool = True) -> str:
        """The prompt for `messages`: a list of {"role", "content"}, content a string or a list of text parts.

        Waits for another process: not to be called on an event loop. Raises ValueError with one line if the messages
        are not that, or the template refuses them."""
        checked = _check_messages(messages)
        try:
            return self._renderer.render(
                {**self._special, "messages": checked, "add_generation_prompt": add_generation_prompt}
            )
        except Refused as error:
            raise ValueError(f"messages: {error}") from error


def _check_messages(messages: object) -> list[dict[str, str]]:
    if not isinstance(messages, Sequence) or isinstance(messages, str | bytes) or not messages:
        raise ValueError('messages: is not a non-empty list of {"role", "content"}')
    if len(messages) > MAX_MESSAGES:
        raise ValueError(f"messages: has {len(messages)} of them; give at most {MAX_MESSAGES}")
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
    if sum(len(message["content"]) for message in checked) > MAX_RENDERED_CHARACTERS:
        raise ValueError(f"messages: their contents exceed {MAX_RENDERED_CHARACTERS} characters; shorten them")
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
