"""`exegpt generate` over the fake engine: order, bad lines, resuming, streams, memory."""

from __future__ import annotations

import json
import signal
import subprocess
import time
from pathlib import Path

import pytest

from tests.serving.servers import environment, exegpt

BAD_LINES = [
    b"not json",
    b"[1, 2]",
    b'{"id": "nan", "prompt": "x", "temperature": NaN}',
    b'{"id": "x", "prompt": "x", "temprature": 1}',
    b'{"id": "cold", "prompt": "x", "temperature": -1}',
    b'{"id": "none"}',
    b'{"id": "long", "prompt": "' + b"long " * 400 + b'"}',
    b'{"id": [1], "prompt": "x"}',
    b'{"id": "\\ud800", "prompt": "x"}',
    b'{"id": "surrogate", "prompt": "\\ud800"}',
    b'{"id": "bytes", "prompt": "\xff\xfe"}',
    b"[" * 100_000,
    b'{"id": "deep", "prompt": ' + b"9" * 5000 + b"}",
]


def good_line(number: int) -> bytes:
    fields = {"id": f"r{number}", "prompt": f"prompt {number}", "max_tokens": 1 + number % 40, "ignore_eos": True}
    return json.dumps(fields).encode()


def command(model: Path, source: Path | str, target: Path | str, *flags: str) -> list[str]:
    return exegpt("generate", f"--model={model}", f"--input={source}", f"--output={target}", "--engine=fake", *flags)


def run(
    model: Path, source: Path | str, target: Path | str, *flags: str, given: bytes | None = None
) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        command(model, source, target, *flags),
        capture_output=True,
        timeout=300,
        env=environment(),
        input=given,
        check=False,
    )


def answers(text: bytes) -> list[dict]:
    return [json.loads(line) for line in text.splitlines()]


def summary(done: subprocess.CompletedProcess[bytes]) -> dict:
    last = done.stderr.decode().splitlines()[-1]
    assert last.startswith("GENERATE ")
    return json.loads(last.removeprefix("GENERATE "))


def write_input(path: Path, count: int) -> Path:
    path.write_bytes(b"".join(good_line(number) + b"\n" for number in range(count)))
    return path


@pytest.mark.parametrize("policy", ["rra", "static", "iteration", "chunked"])
def test_answers_stand_in_the_order_of_the_lines(tiny_model: Path, tmp_path: Path, policy: str) -> None:
    source = write_input(tmp_path / "in.jsonl", 300)
    done = run(tiny_model, source, tmp_path / "out.jsonl", f"--policy={policy}")
    assert done.returncode == 0, done.stderr
    found = answers((tmp_path / "out.jsonl").read_bytes())
    assert [answer["id"] for answer in found] == [f"r{number}" for number in range(300)]
    for number, answer in enumerate(found):
        assert len(answer["token_ids"]) == 1 + number % 40 == answer["usage"]["completion_tokens"]
        assert answer["finish_reason"] == "length"
        assert set(answer) == {"id", "token_ids", "text", "finish_reason", "usage"}
    counts = summary(done)
    assert (counts["requests"], counts["errors"]) == (300, 0)
    assert counts["tokens"] == sum(1 + number % 40 for number in range(300))
    assert counts["tokens_per_s"] > 0 < counts["requests_per_s"]


def test_bad_lines_keep_their_place_and_cost_nobody_else(tiny_model: Path, tmp_path: Path) -> None:
    lines = [line for number, bad in enumerate(BAD_LINES) for line in (good_line(number), bad, b"")]
    source = tmp_path / "in.jsonl"
    source.write_bytes(b"\n".join(lines))
    done = run(tiny_model, source, "-")
    assert done.returncode == 0
    found = answers(done.stdout)
    assert len(found) == 2 * len(BAD_LINES)
    assert [answer["id"] for answer in found[::2]] == [f"r{number}" for number in range(len(BAD_LINES))]
    assert all("token_ids" in answer for answer in found[::2])
    for answer in found[1::2]:
        assert set(answer) == {"id", "error"}
        assert "\n" not in answer["error"]
    assert found[7]["error"].startswith("temprature: unknown parameter")
    assert summary(done)["errors"] == len(BAD_LINES)


def test_a_drawn_seed_is_told_and_gives_the_same_answer(tiny_model: Path) -> None:
    line = {"id": 1, "prompt": [5, 6], "max_tokens": 4, "temperature": 0.8}
    (first,) = answers(run(tiny_model, "-", "-", given=json.dumps(line).encode()).stdout)
    again = json.dumps({**line, "seed": first["seed"]}).encode()
    (second,) = answers(run(tiny_model, "-", "-", given=again).stdout)
    assert second == {key: value for key, value in first.items() if key != "seed"}


def test_standard_streams_answer_while_the_input_stays_open(tiny_model: Path) -> None:
    """As a co-process: one line in, its answer out, before the next line is written."""
    process = subprocess.Popen(
        command(tiny_model, "-", "-"),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=environment(),
    )
    assert process.stdin is not None
    assert process.stdout is not None
    for number in range(3):
        process.stdin.write(good_line(number) + b"\n")
        process.stdin.flush()
        assert json.loads(process.stdout.readline())["id"] == f"r{number}"
    rest, error = process.communicate(timeout=60)
    assert rest == b""
    assert process.returncode == 0
    assert b"GENERATE " in error


def test_a_reader_that_leaves_ends_it_quietly(tiny_model: Path, tmp_path: Path) -> None:
    source = write_input(tmp_path / "in.jsonl", 5000)
    process = subprocess.Popen(
        command(tiny_model, source, "-"), stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment()
    )
    assert process.stdout is not None
    process.stdout.readline()
    process.stdout.close()
    assert process.wait(60) == 1
    assert process.stderr is not None
    assert b"Traceback" not in process.stderr.read()
    process.stderr.close()


def test_ctrl_c_ends_with_130(tiny_model: Path, tmp_path: Path) -> None:
    source = write_input(tmp_path / "in.jsonl", 2000)
    flags = ("--fake_step_s=0.005",)
    process = subprocess.Popen(
        command(tiny_model, source, tmp_path / "out.jsonl", *flags), stderr=subprocess.PIPE, env=environment()
    )
    wait_for_lines(tmp_path / "out.jsonl", 5, process)
    process.send_signal(signal.SIGINT)
    _, error = process.communicate(timeout=60)
    assert process.returncode == 130
    assert b"Traceback" not in error


def wait_for_lines(path: Path, count: int, process: subprocess.Popen[bytes]) -> None:
    end_s = time.monotonic() + 60
    while not path.exists() or path.read_bytes().count(b"\n") < count:
        assert process.poll() is None
        assert time.monotonic() < end_s
        time.sleep(0.02)


def test_resume_after_kill_loses_and_doubles_nothing(tiny_model: Path, tmp_path: Path) -> None:
    source = write_input(tmp_path / "in.jsonl", 400)
    whole, broken = tmp_path / "whole.jsonl", tmp_path / "broken.jsonl"
    assert run(tiny_model, source, whole).returncode == 0
    for stop_after in (20, 120, 250):
        process = subprocess.Popen(
            command(tiny_model, source, broken, "--resume", "--fake_step_s=0.002"),
            stderr=subprocess.DEVNULL,
            env=environment(),
        )
        wait_for_lines(broken, stop_after, process)
        process.kill()
        process.wait()
        # As if the kill had come in the middle of a line.
        broken.write_bytes(broken.read_bytes() + b'{"id": "r')
    done = run(tiny_model, source, broken, "--resume")
    assert done.returncode == 0, done.stderr
    assert broken.read_bytes() == whole.read_bytes()
    assert summary(done)["requests"] + summary(done)["resumed_after"] == 400
    again = run(tiny_model, source, broken, "--resume")
    assert summary(again)["requests"] == 0
    assert broken.read_bytes() == whole.read_bytes()


def test_resume_refuses_another_input(tiny_model: Path, tmp_path: Path) -> None:
    source, target = write_input(tmp_path / "in.jsonl", 10), tmp_path / "out.jsonl"
    assert run(tiny_model, source, target).returncode == 0
    before = target.read_bytes()
    lines = source.read_bytes().splitlines(keepends=True)
    for changed, line in (
        (lines[1:], "line 1 of"),
        (lines[:5], "has more answers than the input has lines"),
    ):
        source.write_bytes(b"".join(changed))
        done = run(tiny_model, source, target, "--resume")
        assert done.returncode == 1
        assert len(done.stderr.splitlines()) == 1
        assert line in done.stderr.decode()
        assert target.read_bytes() == before
    target.write_bytes(b"not ours\n")
    assert b"is no answer" in run(tiny_model, source, target, "--resume").stderr


PEAK = "import resource, sys; from serving import cli; status = cli.main(sys.argv[1:]);"
PEAK += "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, file=sys.stderr); sys.exit(status)"


def test_memory_does_not_grow_with_the_input(tiny_model: Path, tmp_path: Path, full: bool) -> None:
    peaks = []
    for count in (2_000, 1_000_000 if full else 20_000):
        source = tmp_path / "in.jsonl"
        with source.open("wb") as stream:
            for number in range(count):
                stream.write(b'{"id": %d, "prompt": [5, 6, 7], "max_tokens": 2}\n' % number)
        arguments = command(tiny_model, source, tmp_path / "out.jsonl")
        done = subprocess.run(
            [arguments[0], "-c", PEAK, *arguments[3:]], capture_output=True, timeout=3600, env=environment(), check=True
        )
        peaks.append(int(done.stderr.decode().splitlines()[-1]))
        with (tmp_path / "out.jsonl").open("rb") as stream:
            assert sum(1 for _ in stream) == count
    assert peaks[1] - peaks[0] < 20_000, f"{peaks} KiB"
