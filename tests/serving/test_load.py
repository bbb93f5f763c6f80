"""The parts of a load by themselves: arrivals, what is asked, processes' shares, and figures against plain counting."""

from __future__ import annotations

import dataclasses
import gzip
import math
import random
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from serving.client import Tls
from serving.load import arrivals
from serving.load.chart import charts_of, rates_of
from serving.load.choose import Wishes, choose
from serving.load.demand import Lengths, Prompts
from serving.load.figures import figures_of, keeps, spread
from serving.load.fleet import Outcome, processes_for, split
from serving.load.messages import Job, ProcessReport, Sample, job_line, parse_job
from serving.load.report import fields_of
from serving.load.table import lines_of
from solver.plan.bounds import Bounds
from solver.report.page import to_svg

WISHES = Wishes(
    prompt=None,
    input=None,
    workload=None,
    trace=None,
    columns=("input_tokens", "output_tokens", "arrival_s"),
    rate_rps=None,
    burstiness=None,
    speed=None,
    concurrency=None,
    requests=None,
    duration_s=None,
    vocab_size=300,
    seed=3,
    parameters={},
)
UNBOUNDED = Bounds()


def wishes(**given_: object) -> Wishes:
    return dataclasses.replace(WISHES, **given_)  # type: ignore[arg-type]


def drawn(count: int, *, rate: float = 25.0, burstiness: float = 1.0, seed: int = 11) -> np.ndarray:
    return arrivals.drawn(rate, burstiness=burstiness, seed=seed, count=count, until_s=math.inf)


def test_drawn_arrivals_are_poisson() -> None:
    """Gaps are exponential (Kolmogorov and Smirnov at 1%) and independent; counts vary as their mean."""
    count, rate = 20_000, 25.0
    at_s = drawn(count, rate=rate)
    gaps = np.sort(np.diff(at_s, prepend=0.0))
    distance = np.abs(1 - np.exp(-rate * gaps) - (np.arange(count) + 0.5) / count).max() + 0.5 / count
    assert distance < 1.63 / math.sqrt(count)
    plain = np.diff(at_s)
    assert abs(np.corrcoef(plain[:-1], plain[1:])[0, 1]) < 3 / math.sqrt(count)
    counts = np.bincount(at_s.astype(np.int64))[:-1]
    assert counts.var() / counts.mean() == pytest.approx(1, abs=4 * math.sqrt(2 / len(counts)))
    assert counts.mean() == pytest.approx(rate, rel=0.03)


def test_the_poisson_test_notices_bursts_and_clocks() -> None:
    for burstiness in (0.25, 4.0):
        gaps = np.diff(drawn(20_000, burstiness=burstiness))
        assert (gaps.std() / gaps.mean()) ** 2 == pytest.approx(1 / burstiness, rel=0.1)
        assert 1 / gaps.mean() == pytest.approx(25, rel=0.05)


def test_a_longer_load_begins_as_a_shorter_one() -> None:
    long = drawn(10_000)
    assert drawn(100).tolist() == long[:100].tolist()
    timed = arrivals.drawn(25.0, burstiness=1.0, seed=11, count=None, until_s=7.5)
    assert timed.tolist() == long[long <= 7.5].tolist()
    assert arrivals.drawn(math.inf, burstiness=1.0, seed=0, count=3, until_s=9.0).tolist() == [0, 0, 0]
    assert drawn(100, seed=12).tolist() != long[:100].tolist()


def write_trace(path: Path) -> Path:
    """Out of order, as logs are."""
    path.write_text("arrival_s,input_tokens,output_tokens\n100.5,7,3\n100,5,2\n104,9,4\n102,6,1\n")
    return path


def test_a_trace_is_replayed_as_it_was_and_faster(tmp_path: Path) -> None:
    trace = write_trace(tmp_path / "log.csv")
    load = choose(wishes(trace=str(trace), speed=4.0))
    assert load.at_s is not None
    assert load.at_s.tolist() == [0, 0.125, 0.5, 1.0]
    assert isinstance(load.demand, Lengths)
    assert (load.demand.input_tokens, load.demand.output_tokens) == ([5, 7, 6, 9], [2, 3, 1, 4])
    assert choose(wishes(trace=str(trace), duration_s=2.0)).planned == 3
    assert choose(wishes(trace=str(trace), requests=2)).planned == 2
    packed = tmp_path / "log.jsonl.gz"
    packed.write_bytes(gzip.compress(b'{"at": "2024-01-01T00:00:02"}\n{"at": "2024-01-01T00:00:00"}\n'))
    times = choose(wishes(trace=str(packed), prompt="x", columns=("a", "b", "at"), speed=2.0))
    assert times.at_s is not None
    assert times.at_s.tolist() == [0, 1]
    assert isinstance(times.demand, Prompts)


def test_a_preset_with_times_is_replayed_and_one_without_is_drawn() -> None:
    replayed = choose(wishes(workload="azure-code", requests=100))
    assert replayed.at_s is not None
    assert len(replayed.at_s) == 100
    assert replayed.at_s[0] == 0
    first, again = (choose(wishes(workload="sharegpt", rate_rps=5.0, requests=50)) for _ in range(2))
    assert first.demand == again.demand
    assert isinstance(first.demand, Lengths)
    assert len(first.demand.input_tokens) == 50
    closed = choose(wishes(workload="paper-s", concurrency=4, duration_s=3.0))
    assert (closed.at_s, closed.planned, closed.until_s) == (None, None, 3.0)


@pytest.mark.parametrize(
    ("given_", "message"),
    [
        ({}, "prompt: nothing to ask"),
        ({"prompt": "x"}, "rate: not given; give --rate=REQUESTS_PER_SECOND"),
        ({"prompt": "x", "rate_rps": 0.0}, "rate: 0 is no arrival rate"),
        ({"prompt": "x", "rate_rps": math.nan}, "rate: nan is no arrival rate"),
        ({"prompt": "x", "rate_rps": math.inf, "duration_s": 2.0}, "rate: inf without an end; give --requests=N"),
        ({"prompt": "x", "rate_rps": 1.0, "concurrency": 2}, "concurrency: given beside --rate"),
        ({"prompt": "x", "rate_rps": 1.0, "burstiness": 0.0}, "burstiness: 0 is no shape"),
        ({"prompt": "x", "concurrency": 2, "burstiness": 1.0}, "burstiness: given without --rate"),
        ({"prompt": "x", "rate_rps": 1.0, "speed": 2.0}, "speed: is of a replayed trace"),
        ({"prompt": "x", "rate_rps": 1.0, "duration_s": 0.0}, "duration_s: 0 is no time"),
        ({"prompt": "x", "rate_rps": 0.001, "duration_s": 0.001}, "duration_s: 0.001 ends before the first request"),
        ({"prompt": "x", "input": "y"}, "input: given beside --prompt"),
        ({"workload": "sharegpt", "trace": "y"}, "trace: given beside --workload"),
        ({"workload": "sharegpt"}, "workload: sharegpt has no arrival times; give --rate="),
        ({"workload": "azure-code", "speed": 0.0}, "speed: 0 is no factor"),
        ({"workload": "nothing"}, "workload: nothing: no such file, and no preset of workloads"),
    ],
)
def test_wishes_that_make_no_load_are_named(given_: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError) as refusal:
        choose(wishes(**given_))
    assert str(refusal.value).startswith(message)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "has no requests"),
        ('{"prompt": "x"}\n{"prompt": 5}\n', "request 2: prompt: is a int"),
        ('{"messages": [], "prompt": "x"}\n', "request 1: prompt: give exactly one"),
        ('{"prompt": "x", "max_token": 3}\n', "request 1: max_token: is no parameter"),
        ('{"prompt": "x", "max_tokens": "many"}\n', "request 1: request: "),
        ("not json\n", "request 1: line: is no JSON"),
    ],
)
def test_a_line_that_is_no_request_is_named(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "prompts.jsonl"
    path.write_text(text)
    with pytest.raises(ValueError) as refusal:
        choose(wishes(input=str(path), concurrency=1))
    assert message in str(refusal.value)
    assert str(path) in str(refusal.value)


def test_a_log_without_times_is_named(tmp_path: Path) -> None:
    path = tmp_path / "log.csv"
    path.write_text("input_tokens,output_tokens\n5,6\n")
    with pytest.raises(ValueError, match="arrival_s: no such column; there are input_tokens, output_tokens"):
        choose(wishes(trace=str(path)))


def test_lines_of_a_file_are_asked_in_order_and_again(tmp_path: Path) -> None:
    path = tmp_path / "prompts.jsonl"
    path.write_text('{"id": "a", "prompt": [1, 2], "logit_bias": {"5": 1.5}, "seed": null}\n{"prompt": "b", "n": 1}\n')
    load = choose(wishes(input=str(path), concurrency=1, parameters={"max_tokens": 9}))
    assert load.count == 2
    asked = [load.demand.request(number, 0.5) for number in range(3)]
    assert [request.prompt for request in asked] == [[1, 2], "b", [1, 2]]
    assert asked[0].parameters == {"max_tokens": 9, "logit_bias": {5: 1.5}}
    assert asked[0].at_s == 0.5


def test_random_prompts_have_their_lengths_and_are_the_same_in_every_process() -> None:
    demand = Lengths([3, 5], [7, 9], vocab_size=17, seed=1)
    asked = [demand.request(number, 0.0) for number in range(4)]
    assert [len(request.prompt) for request in asked] == [3, 5, 3, 5]
    assert [request.parameters["max_tokens"] for request in asked] == [7, 9, 7, 9]
    assert all(request.parameters["ignore_eos"] for request in asked)
    assert all(0 <= token < 17 for request in asked for token in request.prompt)
    assert asked[0].prompt != asked[2].prompt
    assert demand.request(2, 0.0) == asked[2]


JOB = Job(
    address="127.0.0.1:1",
    key=None,
    tls=None,
    demand=Prompts([{"prompt": "x"}]),
    first=0,
    step=1,
    at_s=None,
    count=None,
    concurrency=1,
    until_s=math.inf,
    warmup=0,
    timeout_s=None,
    one_call=False,
)


@given(requests=st.integers(1, 50), processes=st.integers(1, 9), warmup=st.integers(0, 9))
def test_shares_of_processes_are_the_whole(requests: int, processes: int, warmup: int) -> None:
    at_s = [number / 7 for number in range(requests)]
    jobs = split(dataclasses.replace(JOB, at_s=at_s, warmup=warmup), processes)
    found = {job.first + place * job.step: each for job in jobs for place, each in enumerate(job.at_s or ())}
    assert found == dict(enumerate(at_s))
    assert sum(job.warmup for job in jobs) == warmup
    closed = split(dataclasses.replace(JOB, count=requests, concurrency=5), processes)
    assert sum(job.count or 0 for job in closed) == requests
    assert sum(job.concurrency for job in closed) == 5
    assert all(job.concurrency for job in closed)


def test_a_job_is_read_as_it_was_written() -> None:
    lengths = Lengths([3], [4], 9, 1, {"temperature": 0.5})
    for job in (
        dataclasses.replace(
            JOB, demand=lengths, at_s=[0.1, 0.25], tls=Tls(ca=Path("/ca"), server_name="here"), key="k"
        ),
        dataclasses.replace(JOB, tls=Tls(), timeout_s=3.0),
    ):
        assert parse_job(job_line(job)) == job


def test_processes_grow_with_the_rate(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda pid: set(range(64)))
    wanted = [processes_for(rate, 100.0, None, one_call=False) for rate in (1.0, 100.0, 1000.0, 1e5)]
    assert wanted[0] == 1
    assert wanted == sorted(wanted)
    assert wanted[2] > 1
    assert wanted[-1] == 64
    assert processes_for(1000.0, 100.0, None, one_call=True) < wanted[2]
    assert processes_for(None, None, 32, one_call=False) == 1


def sample(index: int = 0, **given_: object) -> Sample:
    whole = Sample(
        index=index,
        process=0,
        planned_s=1.0,
        sent_s=1.0,
        message_s=[1.25, 1.5, 2.0],
        message_tokens=[1, 4, 4],
        prompt_tokens=3,
        finish_reason="length",
        error=None,
        encode_to_first_s=0.125,
        encode_to_last_s=0.875,
    )
    return dataclasses.replace(whole, **given_)  # type: ignore[arg-type]


def random_samples(rng: random.Random, count: int) -> list[Sample]:
    found = []
    for index in range(count):
        planned_s = index * 0.01
        message_s = [planned_s + 0.01 + rng.random()]
        while rng.random() < 0.8:
            message_s.append(message_s[-1] + rng.random() * 0.1)
        failed = rng.random() < 0.1
        found.append(
            sample(
                index,
                process=index % 3,
                planned_s=planned_s,
                sent_s=planned_s + rng.random() * 0.002,
                message_s=message_s,
                message_tokens=[rng.randint(1, 4) for _ in message_s],
                error=rng.choice(["UNAVAILABLE: full", "INTERNAL: id"]) if failed else None,
                encode_to_first_s=math.nan if rng.random() < 0.1 else rng.random(),
                encode_to_last_s=math.nan if rng.random() < 0.1 else 1 + rng.random(),
            )
        )
    return found


def naive_percentile(values: list[float], percent: float) -> float:
    """The smallest value with enough of them at or below it."""
    return min(v for v in values if sum(other <= v for other in values) * 100 >= percent * len(values))


@pytest.mark.parametrize("clock", ["encode", "arrival"])
@pytest.mark.parametrize("seed", range(4))
def test_figures_are_what_plain_counting_gives(seed: int, clock: str) -> None:
    samples = random_samples(random.Random(seed), 150)
    bounds = Bounds(latency_s=1.5, ttft_s=0.7, tpot_s=0.05, bound_from=clock)  # type: ignore[arg-type]
    reports = tuple(ProcessReport(0.25, [0.001, 0.002], None) for _ in range(3))
    figures = figures_of(Outcome(tuple(samples), reports, None, False), 160, bounds, open_loop=True)

    latencies, firsts, per_token, gaps, encode_first, kept = [], [], [], [], [], 0
    for s in samples:
        if s.error is not None:
            continue
        latency, first = s.message_s[-1] - s.planned_s, s.message_s[0] - s.planned_s
        latencies.append(latency)
        firsts.append(first)
        tokens = sum(s.message_tokens)
        pace = 0.0
        if tokens > 1:
            pace = (s.message_s[-1] - s.message_s[0]) / (tokens - 1)
            per_token.append(pace)
        gaps += [b - a for a, b in zip(s.message_s, s.message_s[1:], strict=False)]
        if s.encode_to_first_s == s.encode_to_first_s:
            encode_first.append(s.encode_to_first_s)
        if clock == "encode":
            latency = s.encode_to_last_s if s.encode_to_last_s == s.encode_to_last_s else latency
            first = s.encode_to_first_s if s.encode_to_first_s == s.encode_to_first_s else first
        kept += latency <= 1.5 and first <= 0.7 and pace <= 0.05
    for found, values in (
        (figures.latency_with_wait_s, latencies),
        (figures.ttft_with_wait_s, firsts),
        (figures.tpot_s, per_token),
        (figures.inter_message_s, gaps),
        (figures.ttft_s, encode_first),
    ):
        assert found.count == len(values)
        assert found.mean == pytest.approx(sum(values) / len(values))
        assert found.max == max(values)
        for name, percent in (("p50", 50), ("p90", 90), ("p95", 95), ("p99", 99)):
            assert getattr(found, name) == naive_percentile(values, percent)
    assert 0 < kept < len(latencies)
    assert figures.goodput is not None
    assert figures.goodput.requests == kept
    assert figures.goodput.share == kept / 150
    seconds = max(s.message_s[-1] for s in samples if s.error is None) - min(s.planned_s for s in samples)
    assert figures.goodput.requests_per_s == pytest.approx(kept / seconds)
    assert figures.requests_per_s == pytest.approx(len(latencies) / seconds)
    assert figures.answered + sum(figures.errors.values()) == 150
    assert figures.unfinished == 10


def test_order_and_share_of_processes_change_no_figure() -> None:
    samples = random_samples(random.Random(5), 100)
    one = figures_of(Outcome(tuple(samples), (None,), None, False), None, UNBOUNDED, open_loop=True)
    mixed = [dataclasses.replace(s, process=0) for s in samples]
    random.Random(6).shuffle(mixed)
    other = figures_of(Outcome(tuple(mixed), (None,), None, False), None, UNBOUNDED, open_loop=True)
    assert (
        fields_of(one, UNBOUNDED, "x")["latency_with_wait_s"] == fields_of(other, UNBOUNDED, "x")["latency_with_wait_s"]
    )
    assert one.errors == other.errors


def test_bounds_hold_at_the_very_bound_and_only_those_given() -> None:
    good = sample()
    assert keeps(good, UNBOUNDED)
    assert keeps(good, Bounds(latency_s=1.0, ttft_s=0.25, bound_from="arrival"))
    assert not keeps(good, Bounds(latency_s=0.99, bound_from="arrival"))
    assert keeps(good, Bounds(latency_s=0.875, ttft_s=0.125, bound_from="encode"))
    assert not keeps(good, Bounds(ttft_s=0.12, bound_from="encode"))
    assert keeps(good, Bounds(tpot_s=0.75 / 8))
    assert not keeps(good, Bounds(tpot_s=0.09))
    assert keeps(sample(message_s=[1.2], message_tokens=[1]), Bounds(tpot_s=1e-9))
    assert not keeps(sample(error="INTERNAL: x"), UNBOUNDED)
    # Nobody told when encode began: the time from arrival stands in.
    unknown = sample(encode_to_last_s=math.nan)
    assert not keeps(unknown, Bounds(latency_s=0.9, bound_from="encode"))
    assert keeps(unknown, Bounds(latency_s=1.0, bound_from="encode"))


@pytest.mark.parametrize(
    ("sent_late_s", "loop_late_s", "busy", "warning"),
    [
        (0.001, 0.001, 0.2, None),
        (0.05, 0.001, 0.2, "requests leave 50 ms late (p99): the figures show the client too"),
        (0.001, 0.03, 0.2, "the client's loops run 30 ms late (p99): "),
        (0.001, 0.001, 0.97, "a client process is busy 97% of the time: "),
    ],
)
def test_a_client_that_lags_is_told(sent_late_s: float, loop_late_s: float, busy: float, warning: str | None) -> None:
    samples = tuple(sample(index, sent_s=1.0 + sent_late_s) for index in range(20))
    reports = (ProcessReport(busy, [loop_late_s] * 9, None), ProcessReport(0.1, [0.0], None))
    figures = figures_of(Outcome(samples, reports, None, False), None, UNBOUNDED, open_loop=True)
    found = figures.client.warning
    assert found is None if warning is None else found is not None and found.startswith(warning)
    told = "\n".join(lines_of(figures, UNBOUNDED))
    assert ("warning: " in told) == (warning is not None)
    assert ("it was in time" in told) == (warning is None)


def test_nothing_answered_is_no_division() -> None:
    failed = (sample(error="UNAVAILABLE: full", message_s=[], message_tokens=[]),)
    for samples in ((), failed):
        figures = figures_of(Outcome(samples, (None,), "gone", False), 5, Bounds(latency_s=1.0), open_loop=True)
        assert figures.requests_per_s == 0
        assert figures.latency_s.count == 0
        assert lines_of(figures, Bounds(latency_s=1.0))
        assert "NaN" not in str(fields_of(figures, Bounds(latency_s=1.0), "x"))
    assert math.isnan(spread([]).p99)


def test_the_chart_shows_every_request_and_token() -> None:
    samples = random_samples(random.Random(1), 80)
    rates = rates_of(samples, 20)
    width_s = float(rates.edge_s[1] - rates.edge_s[0])
    assert rates.sent.sum() * width_s == pytest.approx(80)
    assert rates.answered.sum() * width_s == pytest.approx(sum(s.error is None for s in samples))
    assert rates.failed.sum() * width_s == pytest.approx(sum(s.error is not None for s in samples))
    assert rates.tokens.sum() * width_s == pytest.approx(sum(s.tokens for s in samples))
    svg = to_svg(charts_of(samples, Bounds(latency_s=1.0, ttft_s=0.5)))
    assert svg.count("<svg") == 1
    assert to_svg(charts_of([sample(error="INTERNAL: x", message_s=[], message_tokens=[])], UNBOUNDED))
