"""Where every thread and task of this process stands, for a server that seems to hang."""

from __future__ import annotations

import asyncio
import sys
import threading
import traceback
from collections import Counter


def stacks() -> dict[str, object]:
    """The calls that each thread is in, the innermost last, by the thread's name."""
    names = {thread.ident: thread.name for thread in threading.enumerate()}
    return {
        "threads": {
            f"{names.get(number, 'native')} ({number})": [
                f"{call.name} {call.filename.rpartition('/')[2]}:{call.lineno}"
                for call in traceback.extract_stack(frame)
            ]
            for number, frame in sys._current_frames().items()
        }
    }


def tasks() -> dict[str, object]:
    """How many tasks of this thread's loop are under way, by what they run."""
    found = Counter(getattr(task.get_coro(), "__qualname__", "native") for task in asyncio.all_tasks())
    return {"tasks": dict(found.most_common())}
