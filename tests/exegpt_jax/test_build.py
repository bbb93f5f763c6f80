"""From a directory and flags to a warm executor: what is chosen, what is refused, and that it then answers."""

from __future__ import annotations

from pathlib import Path

import pytest

from exegpt_jax.engine.api import Sampling
from exegpt_jax.runner.build import build
from exegpt_jax.runner.events import Event, Tokens
from exegpt_jax.runner.loop import Runner
from exegpt_jax.runner.measure import Measured, choose
from exegpt_jax.runner.request import Request
from tests.exegpt_jax.tiny_models import write_model


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("models") / "llama"
    write_model("llama", directory)
    return directory


def test_what_is_open_is_measured_and_said_and_the_result_answers(model: Path) -> None:
    lines: list[str] = []
    built = build(model, max_rows=2, cache_tokens=48, max_prompt_tokens=8, progress=lines.append)
    schedule = built.plan.schedule
    assert (schedule.policy, schedule.max_rows, schedule.decode_batch) == ("rra", 2, 2)
    assert any("chosen" in line and f"encode_batch={schedule.encode_batch}" in line for line in lines)
    assert lines[-1].startswith(f"plan {built.plan.digest[:12]}: rra ")
    assert built.memory[0].weights_bytes == sum(param.nbytes for param in built.executor.engine.stage.params)
    heard: list[Event] = []
    runner = Runner(built.plan, built.executor, heard.extend)
    for number in range(5):
        runner.submit(Request(str(number), (1 + number, 2), Sampling(max_tokens=6)))
    while runner.run_phase():
        pass
    assert sum(len(event.token_ids) for event in heard if isinstance(event, Tokens)) == 30
    stats = runner.stats()
    assert (stats.compilations, stats.failed_phases, stats.live_bytes) == (0, 0, 0)


@pytest.mark.parametrize(
    ("wishes", "complaint"),
    [
        ({"policy": "waa"}, "policy: 'waa' takes a plan; choose one of rra, static, iteration, chunked, or give"),
        ({"tensor": 3}, "tensor: 3 does not divide"),
        ({"tensor": 16}, "tensor: 16 "),
        ({"max_rows": 10**9}, "memory: device 0 needs .* lower --max_rows or --cache_tokens"),
        ({"max_rows": 4, "encode_batch": 9}, "encode_batch: 9 exceeds max_rows=4"),
        ({"max_rows": 4, "decode_batch": 9}, "decode_batch: 9 exceeds max_rows=4"),
        ({"cache_tokens": 100}, "cache_tokens: 100 exceeds the model's 64 positions"),
        ({"token_budget": 100}, "token_budget: 100 given, but policy rra has none"),
        ({"policy": "iteration", "decode_iterations": 4}, "decode_iterations: 4, but policy iteration runs 1"),
        ({"memory_fraction": 0.0}, "memory_fraction: 0.0 is out of range"),
        ({"dtype": "int3"}, "dtype: 'int3' is not supported"),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(model: Path, wishes: dict, complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint) as caught:
        build(model, **{"max_rows": 2, **wishes})
    assert "\n" not in str(caught.value)


def test_costly_encoding_calls_for_longer_phases() -> None:
    def chosen(encode_s: float) -> int:
        measured = Measured(0.01, 0.0, {1: encode_s, 4: 1.1 * encode_s, 16: 1.4 * encode_s}, 32, 64)
        return choose(measured, "rra", 1024).decode_iterations

    assert chosen(0.0001) < chosen(0.3)


def test_the_batch_follows_from_the_frequency() -> None:
    choice = choose(Measured(0.01, 0.001, {1: 0.02, 4: 0.03, 16: 0.06}, 32, 64), "rra", 1024)
    periods = (choice.output_tokens + (choice.decode_iterations - 1) / 2) / choice.decode_iterations
    assert choice.encode_batch == round(32 / periods)
