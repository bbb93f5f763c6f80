"""From a checked request to a live one."""

from __future__ import annotations

import time
from collections.abc import Callable

from serving.doors.open_inference.requests import Asked
from serving.frontend import Frontend, Live


async def begin(
    frontend: Frontend, asked: Asked, call_deadline_s: float | None, wake: Callable[[], None], request_id: str
) -> Live:
    """As `Frontend.begin`; the earlier of the call's deadline and the request's own counts.

    Bad input is named as this protocol names it: the prompt by its tensor."""
    own_s = None if asked.timeout_s is None else time.monotonic() + asked.timeout_s
    deadline_s = min((each for each in (call_deadline_s, own_s) if each is not None), default=None)
    try:
        return await frontend.begin(asked.fields, deadline_s, wake, request_id)
    except ValueError as error:
        line = str(error)
        if line.startswith("prompt"):
            raise ValueError(asked.model.prompt + line.removeprefix("prompt")) from error
        raise
