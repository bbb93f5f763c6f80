"""Logs: one object or one line a record, with the request's id, and never what a prompt or an answer says."""

from __future__ import annotations

import json
import logging
import os
import select
from pathlib import Path

import pytest

from serving.client import Client
from serving.telemetry.logs import Aside, JsonLines, TextLines
from tests.serving.servers import server_process

PROMPT = "words that belong in no log"


def record(**extra: object) -> logging.LogRecord:
    made = logging.makeLogRecord({"name": "n", "levelno": 40, "levelname": "ERROR", "msg": "it %s", "args": ("broke",)})
    made.__dict__.update(extra)
    return made


def test_json_is_one_object_a_line() -> None:
    made = record(request_id="r 1")
    try:
        raise ValueError("two\nlines")
    except ValueError as error:
        made.exc_info = (ValueError, error, error.__traceback__)
    text = JsonLines().format(made)
    assert "\n" not in text
    found = json.loads(text)
    assert {name: found[name] for name in ("level", "logger", "message", "request_id")} == {
        "level": "ERROR",
        "logger": "n",
        "message": "it broke",
        "request_id": "r 1",
    }
    assert found["traceback"].endswith("ValueError: two\nlines")
    assert found["time"].endswith("Z")


def test_text_has_the_fields_behind_the_message() -> None:
    assert TextLines().format(record(request_id="r1", tokens=3)).endswith("ERROR n: it broke request_id=r1 tokens=3")


@pytest.mark.parametrize("form", ["json", "text"])
def test_a_request_leaves_one_line_that_does_not_say_what_it_said(tiny_model: Path, form: str) -> None:
    flags = ("--engine=fake", "--log_requests", f"--log_format={form}")
    with server_process(tiny_model, *flags) as server:
        with Client(server.address) as client:
            reply = client.generate(PROMPT, request_id="mine", max_tokens=9, ignore_eos=True)
        server.terminate()
        status, _, errors = server.finish()
    assert status == 0
    (line,) = [line for line in errors.splitlines() if "request ended" in line]
    if form == "json":
        found = json.loads(line)
        assert (found["request_id"], found["outcome"], found["completion_tokens"]) == ("mine", "length", 9)
        assert 0 <= found["queue_s"] <= found["first_token_s"] <= found["duration_s"]
    else:
        assert "request_id=mine outcome=length" in line
    assert PROMPT not in errors
    assert reply.text not in errors


def test_without_the_flag_requests_leave_no_line(tiny_model: Path) -> None:
    with server_process(tiny_model, "--engine=fake") as server:
        with Client(server.address) as client:
            client.generate(PROMPT, max_tokens=2, ignore_eos=True)
        server.terminate()
        errors = server.finish()[2]
    assert "request ended" not in errors


def test_where_a_stop_string_ends_an_answer_its_times_are_known_all_the_same(tiny_model: Path) -> None:
    flags = ("--engine=fake", "--fake_step_s=0.002", "--log_requests", "--log_format=json")
    with server_process(tiny_model, *flags) as server:
        with Client(server.address) as client:
            text = client.generate(PROMPT, max_tokens=40, ignore_eos=True).text
            reply = client.generate(PROMPT, request_id="cut", max_tokens=40, ignore_eos=True, stop=text[5:8])
        server.terminate()
        errors = server.finish()[2]
    (line,) = [json.loads(line) for line in errors.splitlines() if '"cut"' in line]
    assert (line["outcome"], line["completion_tokens"]) == ("stop", len(reply.token_ids))
    assert 0 <= line["queue_s"] <= line["first_token_s"] <= line["duration_s"]


def test_a_log_that_nobody_reads_holds_up_nobody(tiny_model: Path) -> None:
    with server_process(tiny_model, "--engine=fake", "--log_requests") as server:
        with Client(server.address, retries=False) as client:
            # Three times what a pipe holds.
            for number in range(1000):
                name = f"{number:d}".rjust(100, "r")
                client.generate([5], request_id=name, max_tokens=1, ignore_eos=True, timeout_s=30)
        server.terminate()
        # The process ends before anybody reads.
        assert server.process.wait(30) == 0
        lines = server.finish()[2].splitlines()
    assert "request_id=" + "0".rjust(100, "r") in "\n".join(lines)


def test_a_record_that_cannot_be_formatted_costs_no_other() -> None:
    read, write = os.pipe()
    handler = Aside(write, TextLines())
    handler.handle(logging.makeLogRecord({"name": "n", "msg": "%d apples", "args": ("many",)}))
    handler.handle(record())
    handler.flush()
    os.close(write)
    with os.fdopen(read) as lines:
        first, second = lines
    assert first.startswith("a record of n cannot be formatted: TypeError: ")
    assert second.endswith("it broke\n")


def test_what_a_full_log_has_no_room_for_is_counted() -> None:
    read, write = os.pipe()
    handler = Aside(write, TextLines(), kept_records=10)
    for number in range(3000):
        handler.handle(record(number=f"{number:0100d}"))
    handler.flush()
    data, kept, dropped = b"", 0, 0
    while kept + dropped < 3000 and select.select([read], [], [], 10)[0]:
        data += os.read(read, 65536)
        # What is not whole yet aside.
        lines = data.decode().split("\n")[:-1]
        told = [line for line in lines if "dropped" in line]
        dropped = sum(int(line.split("logs: ")[1].split()[0]) for line in told)
        kept = len(lines) - len(told)
    # Whoever logs was not held up, so the pipe and ten records are about all that there was room for.
    assert (kept + dropped, dropped > 1000) == (3000, True)
    os.close(write)
    os.close(read)
