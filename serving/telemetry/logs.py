"""Logs for people or for machines (--log_format), and one line a request where that is asked for.

A record's `request_id`, and what else is given as `extra`, is a field of its own in JSON and stands behind the message
in text. Prompts and answers are in no record. Who logs never waits for whoever reads the log: a thread writes, and what
a reader that stands still leaves no room for is counted in place of being kept.
"""

from __future__ import annotations

import contextlib
import json
import logging
import logging.handlers
import os
import queue
import sys
import threading
import time

from serving.telemetry.tally import Ended

REQUESTS = logging.getLogger("serving.requests")
# What every record has; the rest came as `extra`.
_USUAL = frozenset({*logging.makeLogRecord({}).__dict__, "message", "asctime", "taskName"})
_KEPT_RECORDS = 10_000
_LAST_WORDS_S = 2.0


def configure(form: str, *, requests: bool) -> None:
    """Everything goes to standard error from here on.

    Args:
      form: text or json.
      requests: each request gets a line when it has ended.
    """
    handler = Aside(sys.stderr.fileno(), JsonLines() if form == "json" else TextLines())
    logging.basicConfig(handlers=[handler], force=True)
    REQUESTS.setLevel(logging.INFO if requests else logging.WARNING)


def _extras(record: logging.LogRecord) -> dict[str, object]:
    return {name: value for name, value in record.__dict__.items() if name not in _USUAL}


class Aside(logging.handlers.QueueHandler):
    """Leaves writing to a thread of its own, which holds no lock while it writes: the process ends without it, too.

    Args:
      descriptor: written to.
      formatter: of records.
      kept_records: that wait to be written; what comes then is dropped, and told of when there is room again.
    """

    def __init__(self, descriptor: int, formatter: logging.Formatter, kept_records: int = _KEPT_RECORDS) -> None:
        # None ends the thread.
        self._waiting: queue.Queue[logging.LogRecord | None] = queue.Queue(kept_records)
        super().__init__(self._waiting)
        self.setFormatter(formatter)
        self._descriptor = descriptor
        self._dropped, self._counting = 0, threading.Lock()
        threading.Thread(target=self._write_all, name="log", daemon=True).start()

    def prepare(self, record: logging.LogRecord) -> logging.LogRecord:
        """As it is: it is formatted by the thread."""
        return record

    def enqueue(self, record: logging.LogRecord) -> None:
        try:
            self._waiting.put_nowait(record)
        except queue.Full:
            with self._counting:
                self._dropped += 1

    def flush(self) -> None:
        """Waits for what was logged, but not for a reader that stands still."""
        done = self._waiting.all_tasks_done
        with done:
            done.wait_for(lambda: not self._waiting.unfinished_tasks, _LAST_WORDS_S)

    def close(self) -> None:
        """The thread ends behind what it has; `logging.shutdown` has flushed before."""
        with contextlib.suppress(queue.Full):
            self._waiting.put_nowait(None)
        super().close()

    def _write_all(self) -> None:
        while (record := self._waiting.get()) is not None:
            self._write(record)
            # Its traceback holds on to whatever failed.
            del record
            if self._dropped and self._waiting.empty():
                with self._counting:
                    dropped, self._dropped = self._dropped, 0
                line = f"{dropped} records were dropped, for nobody read the log"
                self._write(logging.LogRecord(__name__, logging.WARNING, __file__, 0, line, None, None))
            self._waiting.task_done()

    def _write(self, record: logging.LogRecord) -> None:
        try:
            line = self.format(record)
        # A record whose arguments do not fit its message must not end all others.
        except Exception as error:
            line = f"a record of {record.name} cannot be formatted: {type(error).__name__}: {error}"
        text = f"{line}\n".encode(errors="backslashreplace")
        # Whoever read the log may have gone: there is nobody to tell.
        with contextlib.suppress(OSError):
            while text:
                text = text[os.write(self._descriptor, text) :]


class TextLines(logging.Formatter):
    """`time LEVEL logger: message name=value ..`, a traceback below it."""

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)s %(name)s: %(message)s")

    def formatMessage(self, record: logging.LogRecord) -> str:
        return " ".join(
            [super().formatMessage(record), *(f"{name}={value}" for name, value in _extras(record).items())]
        )


class JsonLines(logging.Formatter):
    """One object a line, a traceback in it; times are UTC."""

    def format(self, record: logging.LogRecord) -> str:
        fields: dict[str, object] = {
            "time": time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created)) + f".{int(record.msecs):03d}Z",
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
            **_extras(record),
        }
        if record.exc_info:
            fields["traceback"] = self.formatException(record.exc_info)
        return json.dumps(fields, default=str)


def log_request(ended: Ended) -> None:
    """The line of a request that has ended."""
    if not REQUESTS.isEnabledFor(logging.INFO):
        return
    times = {
        "queue_s": ended.encode_start_s - ended.arrival_s if ended.encode_start_s else None,
        "first_token_s": ended.first_token_s - ended.arrival_s if ended.first_token_s else None,
        "duration_s": ended.ended_s - ended.arrival_s,
    }
    REQUESTS.info(
        "request ended",
        extra={
            "request_id": ended.request_id,
            "outcome": ended.outcome,
            "prompt_tokens": ended.prompt_tokens,
            "completion_tokens": ended.completion_tokens,
            **{name: round(value, 6) for name, value in times.items() if value is not None},
        },
    )
