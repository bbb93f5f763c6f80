"""Logs for people or for machines (--log_format), and one line a request where that is asked for.

A record's `request_id`, and what else is given as `extra`, is a field of its own in JSON and stands behind the message
in text. Prompts and answers are in no record.
"""

from __future__ import annotations

import json
import logging
import sys
import time

from serving.telemetry.tally import Ended

REQUESTS = logging.getLogger("serving.requests")
# What every record has; the rest came as `extra`.
_USUAL = frozenset({*logging.makeLogRecord({}).__dict__, "message", "asctime", "taskName"})


def configure(form: str, *, requests: bool) -> None:
    """Everything goes to standard error from here on.

    Args:
      form: text or json.
      requests: each request gets a line when it has ended.
    """
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonLines() if form == "json" else TextLines())
    logging.basicConfig(handlers=[handler], force=True)
    REQUESTS.setLevel(logging.INFO if requests else logging.WARNING)


def _extras(record: logging.LogRecord) -> dict[str, object]:
    return {name: value for name, value in record.__dict__.items() if name not in _USUAL}


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
