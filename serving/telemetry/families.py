"""The metrics by name: what the front end has counted and what the engine tells, as Prometheus families.

Names and labels are a promise to dashboards; `configs/deploy/grafana` reads them. Where the meaning is vLLM's, the
value stands under vLLM's name too, for what is built on those (dashboards, the Kubernetes inference gateway).
"""

from __future__ import annotations

import importlib.metadata
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TypeAlias

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.utils import floatToGoString

from serving.frontend import Frontend
from serving.telemetry.run_view import counted
from serving.telemetry.tally import ANSWERED

# What `RunView.figures` gives; plain JSON values.
Figures: TypeAlias = Mapping[str, Any]
Labels: TypeAlias = Mapping[str, str]


def front_families(frontend: Frontend, model: str) -> Iterator[Metric]:
    """What is known without the engine."""
    tally = frontend.tally
    yield _gauge("exegpt_info", "Version and model.", {"version": _version(), "model": model}, 1)
    states = {state: float(frontend.state == state) for state in ("warming", "serving", "draining")}
    yield _gauges("exegpt_server_state", "1 for the state that the server is in.", "state", states)
    yield _gauge("exegpt_requests_admitted", "Requests admitted and not answered yet.", {}, frontend.admitted)
    yield _gauge("exegpt_requests_limit", "Most requests admitted at once.", {}, frontend.max_requests)
    yield _counters("exegpt_requests", "Requests by how they ended.", "outcome", tally.outcomes)
    yield _counters("exegpt_refusals", "Requests that were not let in, by reason.", "reason", tally.refusals)
    yield from _queue(frontend)
    tokens = {"prompt": tally.prompt_tokens, "generated": tally.generated_tokens}
    yield _counters("exegpt_tokens", "Tokens encoded, and handed over.", "kind", tokens)
    if tally.bound is not None:
        labels = {"from": tally.bound.clock}
        yield _gauge("exegpt_latency_bound_seconds", "Latency bound of the plan.", labels, tally.bound.latency_s)
    misses = "Answers that took longer than the latency bound."
    yield _counter("exegpt_latency_bound_misses", misses, {}, tally.bound_misses)
    yield from _latencies(frontend, model)
    alias = _alias(model)
    yield _counter("vllm:prompt_tokens", "Prompt tokens encoded.", alias, tally.prompt_tokens)
    yield _counter("vllm:generation_tokens", "Tokens handed over.", alias, tally.generated_tokens)
    answered = {outcome: tally.outcomes[outcome] for outcome in ANSWERED}
    yield _counters("vllm:request_success", "Whole answers.", "finished_reason", answered, alias)


def _queue(frontend: Frontend) -> Iterator[Metric]:
    gate = frontend.gate
    yield _gauge("exegpt_queue_requests", "Requests that wait in the front end for the engine.", {}, gate.waiting)
    yield _gauge("exegpt_queue_tokens", "Prompt and answer tokens of those who wait, at most.", {}, gate.held.tokens)
    yield _gauge("exegpt_queue_tokens_limit", "Most tokens that wait at once.", {}, gate.limits.tokens)
    yield _gauge("exegpt_queue_bytes", "Memory of those who wait, estimated.", {}, gate.held.bytes)
    yield _gauge("exegpt_queue_bytes_limit", "Most memory of those who wait.", {}, gate.limits.bytes)
    pace = gate.pace
    if pace is not None:
        known = {"predicted": pace.predicted_s, "measured": pace.period_s.value}
        periods = {kind: period_s for kind, period_s in known.items() if period_s is not None}
        yield _gauges("exegpt_period_seconds", "From one phase to the next: the plan's, and lately.", "kind", periods)
        margin = "By how much predictions for those who waited fell short in the last minute, at worst."
        yield _gauge("exegpt_admission_margin_seconds", margin, {}, pace.margin_s)


def _latencies(frontend: Frontend, model: str) -> Iterator[Metric]:
    tally = frontend.tally
    table = (
        ("exegpt_time_to_first_token_seconds", "vllm:time_to_first_token_seconds", tally.first_token_s,
         "From arrival to the first hand-over."),
        ("exegpt_inter_token_latency_seconds", "vllm:inter_token_latency_seconds", tally.between_tokens_s,
         "Time between two hand-overs over the tokens of the second, once a token."),
        ("exegpt_time_per_output_token_seconds", "vllm:request_time_per_output_token_seconds", tally.per_token_s,
         "Of an answer: from its first to its last token, over the tokens behind the first."),
        ("exegpt_request_duration_seconds", "vllm:e2e_request_latency_seconds", tally.request_s,
         "From arrival to the last token."),
        ("exegpt_queue_seconds", "vllm:request_queue_time_seconds", tally.queue_s,
         "From arrival to the start of the encode phase."),
        ("exegpt_request_encode_seconds", "vllm:request_prefill_time_seconds", tally.encode_s,
         "From the start of the encode phase to the first token."),
        ("exegpt_request_decode_seconds", "vllm:request_decode_time_seconds", tally.decode_s,
         "From the first to the last token."),
        ("exegpt_request_prompt_tokens", "vllm:request_prompt_tokens", tally.asked_tokens,
         "Prompt tokens of an answered request."),
        ("exegpt_request_generated_tokens", "vllm:request_generation_tokens", tally.answered_tokens,
         "Tokens of an answer."),
    )  # fmt: skip
    for own, histogram, text in (
        ("exegpt_predicted_queue_seconds", tally.predicted_queue_s,
         "As predicted when it came: from arrival to the start of the encode phase."),
        ("exegpt_predicted_request_seconds", tally.predicted_request_s,
         "As predicted when it came: from arrival to the last token."),
    ):  # fmt: skip
        yield _histograms(own, text, {}, [({}, counted(histogram))])
    for own, theirs, histogram, text in table:
        plain = counted(histogram)
        yield _histograms(own, text, {}, [({}, plain)])
        yield _histograms(theirs, text, _alias(model), [({}, plain)])


def run_families(figures: Figures, model: str, queued: int) -> Iterator[Metric]:
    """What the engine tells; `queued` requests wait for it in the front end."""
    stats, kv_bytes, alias = figures["stats"], figures["kv_bytes"], _alias(model)
    running = {"running": stats["running"], "waiting": stats["waiting"]}
    yield _gauges("exegpt_runner_requests", "Requests on the devices, and those that wait for it.", "state", running)
    yield _gauge("vllm:num_requests_running", "Requests on the devices.", alias, stats["running"])
    waiting = stats["waiting"] + queued
    yield _gauge("vllm:num_requests_waiting", "Requests that wait for the devices.", alias, waiting)
    yield _gauges("exegpt_kv_bytes", "Cache of the fullest device, by what holds it.", "state", kv_bytes)
    usage = min(1.0, kv_bytes["live"] / kv_bytes["allocated"]) if kv_bytes["allocated"] else 0.0
    yield _gauge("vllm:kv_cache_usage_perc", "Share of the cache that requests hold; 1 is all.", alias, usage)
    schedule = "1, with the schedule in force."
    yield _gauge("exegpt_schedule_info", schedule, figures["schedule"], 1)
    yield _gauge("exegpt_runner_broken", "1: the engine could not be reset after a failure.", {}, stats["broken"])
    yield _counter("exegpt_phases", "Phases that were begun.", {}, stats["phases"])
    yield _counter("exegpt_failed_phases", "Phases that failed.", {}, stats["failed_phases"])
    compiled = "Programs compiled since readiness: on the serving path, of which there should be none, and behind it."
    yield _counters("exegpt_compilations", compiled, "phase", figures["compilations"])
    yield from _phases(figures)


def _phases(figures: Figures) -> Iterator[Metric]:
    def by_part(name: str, text: str, values: Mapping[str, Figures]) -> Metric:
        return _histograms(name, text, {}, [({"phase": part}, plain) for part, plain in values.items()])

    yield by_part(
        "exegpt_phase_seconds", "Time of a phase: its parts on the devices, and whole.", figures["measured_s"]
    )
    predicted = "What the plan's profile predicts for those phases that it can predict, in the shapes that they ran in."
    yield by_part("exegpt_predicted_phase_seconds", predicted, figures["predicted_s"])
    yield by_part("exegpt_batch_size", "Requests in a phase.", figures["rows"])
    error = "Predicted / measured - 1, over all time of the last minute's phases that were predicted."
    yield _gauges("exegpt_simulator_error_ratio", error, "phase", figures["error_ratio"])
    busy = "Share of the last minute in which a stage worked."
    yield _gauges("exegpt_stage_busy_ratio", busy, "stage", figures["busy_ratio"])


def engine_up(up: bool) -> Metric:
    return _gauge("exegpt_engine_up", "1: the engine answers.", {}, float(up))


def _version() -> str:
    return importlib.metadata.version("exegpt-jax")


def _alias(model: str) -> Labels:
    return {"model_name": model, "engine": "0"}


def _gauge(name: str, text: str, labels: Labels, value: float) -> Metric:
    family = GaugeMetricFamily(name, text, labels=list(labels))
    family.add_metric(list(labels.values()), float(value))
    return family


def _gauges(name: str, text: str, label: str, values: Mapping[str, float]) -> Metric:
    family = GaugeMetricFamily(name, text, labels=[label])
    for key, value in values.items():
        family.add_metric([key], float(value))
    return family


def _counter(name: str, text: str, labels: Labels, value: float) -> Metric:
    family = CounterMetricFamily(name, text, labels=list(labels))
    family.add_metric(list(labels.values()), float(value))
    return family


def _counters(name: str, text: str, label: str, values: Mapping[Any, float], more: Labels | None = None) -> Metric:
    common = more or {}
    family = CounterMetricFamily(name, text, labels=[*common, label])
    for key, value in values.items():
        family.add_metric([*common.values(), key], float(value))
    return family


def _histograms(name: str, text: str, common: Labels, values: Sequence[tuple[Labels, Figures]]) -> Metric:
    """Histograms of one name, each with labels of its own."""
    family = HistogramMetricFamily(name, text, labels=[*common, *values[0][0]])
    for labels, plain in values:
        buckets = [(floatToGoString("inf" if le is None else le), float(count)) for le, count in plain["buckets"]]
        family.add_metric([*common.values(), *labels.values()], buckets, plain["sum"])
    return family
