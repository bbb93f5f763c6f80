"""Metrics as a scraper sees them, and a load to see in them."""

from __future__ import annotations

import time
import urllib.request
from collections.abc import Callable

from prometheus_client.metrics_core import Metric
from prometheus_client.parser import text_string_to_metric_families

from serving.load import LoadRequest, run_load

Samples = dict[str, dict[tuple[tuple[str, str], ...], float]]


def families(address: str) -> dict[str, Metric]:
    with urllib.request.urlopen(f"http://{address}/metrics", timeout=30) as answer:
        text = answer.read().decode()
    return {family.name: family for family in text_string_to_metric_families(text)}


def value(found: dict[str, Metric], sample: str, **labels: str) -> float:
    """Of the one sample with this name and these labels."""
    (one,) = (
        each.value
        for family in found.values()
        for each in family.samples
        if each.name == sample and labels.items() <= each.labels.items()
    )
    return one


def load(address: str, count: int, tokens: int = 12) -> None:
    """Whole answers to short prompts, eight at a time."""
    requests = [LoadRequest(f"p {n}", {"max_tokens": tokens, "ignore_eos": True}) for n in range(count)]
    assert [result.error for result in run_load(address, requests, concurrency=8)] == [None] * count


def until(condition: Callable[[], object], timeout_s: float = 60) -> None:
    end_s = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < end_s, "still not so"
        time.sleep(0.02)
