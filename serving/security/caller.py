"""The name of the key that the request at hand came with, for whoever counts or logs by it."""

from __future__ import annotations

import contextvars

CALLER: contextvars.ContextVar[str | None] = contextvars.ContextVar("caller", default=None)
"""None where the server has no keys. Tasks that a call starts have its caller."""
