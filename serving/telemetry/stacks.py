"""Where every thread of this process stands, for a server that seems to hang."""

from __future__ import annotations

import sys
import threading
import traceback


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
